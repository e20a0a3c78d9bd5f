"""A batch notes the file that is to be its target before that stands, and knows when another has taken it over."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SUPERSEDED = """
UPDATE batches SET superseded = (1 = 1) WHERE EXISTS (
    SELECT 1 FROM batches newer
    WHERE newer.team = batches.team AND newer.series = batches.series AND newer.key <> batches.key
    AND newer.created_at > batches.created_at
)
"""


def upgrade() -> None:
    op.add_column("batches", sa.Column("target_hashes", sa.JSON()))
    op.add_column("batches", sa.Column("superseded", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(_SUPERSEDED)


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
