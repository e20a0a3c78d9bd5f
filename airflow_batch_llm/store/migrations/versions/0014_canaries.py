"""The first rows of a batch may be run before the others, which wait until they are judged."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("canary_rows", sa.Integer))
    op.add_column("batches", sa.Column("canary", sa.String(8)))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
