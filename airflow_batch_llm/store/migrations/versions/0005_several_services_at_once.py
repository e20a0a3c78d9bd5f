"""Several services at once: each part has its place in its batch, and chunks lie in the order of their claims."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PLACES = """
UPDATE parts SET place = counted.place FROM (
  SELECT chunk_id, attempt, number, row_number() OVER (
    PARTITION BY batch_id ORDER BY committed_at, chunk_id, attempt, number
  ) AS place FROM parts
) AS counted
WHERE parts.chunk_id = counted.chunk_id AND parts.attempt = counted.attempt AND parts.number = counted.number
"""


def upgrade() -> None:
    op.add_column("parts", sa.Column("place", sa.Integer(), server_default="0", nullable=False))
    op.execute(PLACES)
    op.create_index("ix_parts_batch_id_place", "parts", ["batch_id", "place"])
    op.drop_index("ix_chunks_claim", "chunks")
    op.create_index("ix_chunks_claim", "chunks", ["state", "model", "endpoint", sa.text("priority DESC"), "id"])
    op.create_index("ix_chunks_lease", "chunks", ["state", "lease_until"])


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
