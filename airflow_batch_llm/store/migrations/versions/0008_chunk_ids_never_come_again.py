"""A deleted chunk's id is never another chunk's: what a late worker says of it must not be taken for that one's."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NOTED = """
CREATE TRIGGER chunks_deleted AFTER DELETE ON chunks BEGIN
    DELETE FROM deleted_chunks WHERE highest < OLD.id;
    INSERT INTO deleted_chunks (highest) SELECT OLD.id WHERE NOT EXISTS (SELECT 1 FROM deleted_chunks);
END
"""
_RENUMBERED = """
CREATE TRIGGER chunks_inserted AFTER INSERT ON chunks WHEN NEW.id <= (SELECT max(highest) FROM deleted_chunks) BEGIN
    UPDATE chunks SET id = 1 + max((SELECT max(id) FROM chunks), (SELECT max(highest) FROM deleted_chunks))
    WHERE id = NEW.id;
END
"""


def upgrade() -> None:
    op.create_table("deleted_chunks", sa.Column("highest", sa.BigInteger(), autoincrement=False, primary_key=True))
    if op.get_bind().dialect.name == "sqlite":  # elsewhere a sequence gives each id once
        op.execute(_NOTED)
        op.execute(_RENUMBERED)


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
