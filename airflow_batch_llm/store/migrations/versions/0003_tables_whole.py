"""Tables: equal rows found and known answers reused, estimates, and the files that known answers are found in."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("batches", sa.Column("reuse", sa.String(8), server_default="auto", nullable=False))
    op.add_column("batches", sa.Column("dry_run", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("batches", sa.Column("estimate", sa.JSON()))
    op.add_column("batches", sa.Column("engine_identity", sa.String(128)))
    op.add_column("batches", sa.Column("rows_duplicate", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("batches", sa.Column("rows_reused", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "team_secrets",
        sa.Column("team", sa.String(128), primary_key=True),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "index_files",
        sa.Column("id", BigId, primary_key=True, autoincrement=True),
        sa.Column("team", sa.String(128), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_index_files_team_level", "index_files", ["team", "level"])
    op.create_table(
        "index_batches",
        sa.Column("file_id", BigId, sa.ForeignKey("index_files.id"), primary_key=True),
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("expires_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_index_batches_batch_id", "index_batches", ["batch_id"])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
