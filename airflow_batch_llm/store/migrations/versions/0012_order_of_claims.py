"""Chunks are claimed by priority, then by deadline, then in turn between teams and between groups of batches."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_NO_DUE = "1000000000000"
_DUE = f"""
UPDATE chunks SET due = COALESCE((SELECT expires_at FROM batches WHERE batches.id = chunks.batch_id), {_NO_DUE})
WHERE state IN ('pending', 'held', 'leased')
"""  # noqa: S608


def upgrade() -> None:
    op.add_column("batches", sa.Column("fair_group", sa.String(512), nullable=False, server_default=""))
    op.add_column("batches", sa.Column("raised", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE batches SET fair_group = COALESCE(series, id)")
    op.create_index("ix_batches_team_fair_group_status", "batches", ["team", "fair_group", "status"])
    op.add_column("chunks", sa.Column("due", sa.Double(), nullable=False, server_default=_NO_DUE))
    op.add_column("chunks", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(_DUE)
    op.drop_index("ix_chunks_claim", "chunks")
    lane, order = ("state", "model", "endpoint", "team"), ("due", "turn", "id")
    op.create_index("ix_chunks_claim", "chunks", [*lane, sa.text("priority DESC"), *order])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
