"""A duty knows how many processes ended at it, so that a batch that ends them does not keep the others waiting."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("duties", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
