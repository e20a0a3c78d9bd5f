"""Chunks that were cut into smaller ones, to find a row that kills engines."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chunks", sa.Column("only", sa.JSON(none_as_null=True)))
    op.add_column("chunks", sa.Column("alone", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("chunks", sa.Column("suspects", sa.JSON(none_as_null=True)))
    op.add_column("chunks", sa.Column("deaths", sa.JSON(none_as_null=True)))
    op.add_column("chunks", sa.Column("barren", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
