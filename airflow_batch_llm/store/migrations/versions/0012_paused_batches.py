"""A batch can be paused; its chunks are held back then."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("paused", sa.String(16)))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
