"""What was cleaned away and when, and the lease of who cleans."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("dropped_at", sa.Double()))
    op.create_index("ix_files_dropped_at_expires_at", "files", ["dropped_at", "expires_at"])
    op.add_column("batches", sa.Column("staged_dropped_at", sa.Double()))
    op.add_column("batches", sa.Column("bytes_dropped_at", sa.Double()))
    op.create_index("ix_batches_staged_dropped_at", "batches", ["staged_dropped_at"])
    op.create_index("ix_batches_bytes_dropped_at", "batches", ["bytes_dropped_at"])
    op.create_table(
        "cleaning",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("store_id", sa.String(32), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(128)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("not_before", sa.Double()),
        sa.Column("place", sa.Text()),
        sa.Column("swept_at", sa.Double()),
        sa.Column("trouble", sa.Text()),
    )


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
