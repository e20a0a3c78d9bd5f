"""Batches that somebody looks at together have a group in common, by which they are found."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("group", sa.String(length=512), nullable=True))
    op.create_index("ix_batches_team_group_created_at", "batches", ["team", "group", "created_at"])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
