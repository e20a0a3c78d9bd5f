"""A batch notes the file that is to be its target before that stands: it is its own from then on."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("target_hashes", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
