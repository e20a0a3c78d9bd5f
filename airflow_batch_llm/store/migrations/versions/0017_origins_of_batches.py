"""Where in Airflow batches come from, and what their overview needs to read no more than it shows.

Batches of before have no origin.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("deployment", "dag_id", "task_id", "run_id"):
        op.add_column("batches", sa.Column(name, sa.String(512), nullable=True))
    op.add_column("batches", sa.Column("map_index", sa.Integer(), nullable=True))
    op.create_index("ix_batches_team_run_id_dag_id", "batches", ["team", "run_id", "dag_id"])
    shown = ("status", "paused", "dag_id", "priority", "raised", "expires_at")
    op.create_index("ix_batches_overview", "batches", ["team", "created_at", "id", *shown])
    op.drop_index("ix_batches_team_created_at", "batches")  # the one above begins with it
    op.create_index("ix_parts_committed_at", "parts", ["committed_at"])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
