"""Batches that are paused while nobody watches them."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("pause_unwatched_after", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("unwatched_at", sa.Double(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
