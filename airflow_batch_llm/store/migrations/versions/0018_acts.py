"""What somebody did with a batch, and who; what is added up of parts over times is found in one index."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "acts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("batches.id"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("act", sa.String(16), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
    )
    op.create_index("ix_acts_batch_id_id", "acts", ["batch_id", "id"])
    op.drop_index("ix_parts_batch_id_committed_at", "parts")
    summed = ["rows", "rows_failed", "prompt_tokens", "completion_tokens"]
    op.create_index("ix_parts_batch_id_committed_at", "parts", ["batch_id", "committed_at", *summed])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
