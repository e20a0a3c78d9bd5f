"""Request files: deadlines, expiry, reasoning tokens, and the body fields that an engine knows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Added in place: Alembic's batch mode would make the tables anew, which SQLite's foreign keys do not let go.
    op.add_column("batches", sa.Column("deadline", sa.Double()))
    op.add_column("batches", sa.Column("output_seconds", sa.Integer()))
    op.add_column("batches", sa.Column("expiring", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("batches", sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("parts", sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("worker_models", sa.Column("body_fields", sa.JSON()))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
