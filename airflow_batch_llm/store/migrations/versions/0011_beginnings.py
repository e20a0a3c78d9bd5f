"""Whether an attempt gave a row to its engine, and which engines more than one worker may ask."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("began_at", sa.Double()))
    op.add_column("workers", sa.Column("server", sa.String(64)))
    # They counted claims until now, also those of workers that never had a row.
    op.execute("UPDATE chunks SET barren = 0 WHERE barren > 0")


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
