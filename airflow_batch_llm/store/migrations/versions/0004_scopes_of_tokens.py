"""Tokens: each with an id that can be shown, scopes, and whether a worker that holds it serves all teams."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ALL_SCOPES = "read submit worker admin"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("id", sa.String(64), server_default="", nullable=False))
    op.add_column("tokens", sa.Column("scopes", sa.String(64), server_default="", nullable=False))
    op.add_column("tokens", sa.Column("all_teams", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("tokens", sa.Column("last_four", sa.String(4), server_default="", nullable=False))
    op.add_column("workers", sa.Column("all_teams", sa.Boolean(), server_default=sa.false(), nullable=False))
    _keep_what_was_allowed()
    op.create_index("ix_tokens_id", "tokens", ["id"], unique=True)


def _keep_what_was_allowed() -> None:
    """A token could do everything so far, and a worker served all teams."""
    tokens = sa.table("tokens", sa.column("sha256"), sa.column("id"), sa.column("scopes"), sa.column("all_teams"))
    workers = sa.table("workers", sa.column("all_teams"))
    connection = op.get_bind()
    for sha256 in connection.scalars(sa.select(tokens.c.sha256)).all():
        values = {"id": f"token-{uuid.uuid4().hex[:16]}", "scopes": ALL_SCOPES, "all_teams": True}
        connection.execute(sa.update(tokens).where(tokens.c.sha256 == sha256).values(values))
    connection.execute(sa.update(workers).values(all_teams=True))


def downgrade() -> None:
    raise NotImplementedError("The store only goes forward: keep a copy of it to go back.")
