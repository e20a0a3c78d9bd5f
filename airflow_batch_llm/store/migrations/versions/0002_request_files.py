"""Request files: deadlines, expiry, reasoning tokens, and the body fields that an engine knows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("batches") as batches:
        batches.add_column(sa.Column("deadline", sa.Double()))
        batches.add_column(sa.Column("output_seconds", sa.Integer()))
        batches.add_column(sa.Column("expiring", sa.Boolean(), server_default=sa.false(), nullable=False))
        batches.add_column(sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False))
    with op.batch_alter_table("parts") as parts:
        parts.add_column(sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False))
    with op.batch_alter_table("worker_models") as worker_models:
        worker_models.add_column(sa.Column("body_fields", sa.JSON()))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
