"""Who may call: tokens, known by their hash only. Each belongs to a team and has scopes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, func, insert, select, update

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.models import DEFAULT_TEAM, Scope
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tables import tokens

ALL_SCOPES: Final = tuple(Scope)


@dataclass(frozen=True)
class Access:
    """What a token opens: a team's things, as far as its scopes go."""

    team: str
    scopes: frozenset[Scope]
    all_teams: bool = False
    """Whether a worker that holds it does the chunks of all teams."""
    name: str = ""
    """What the token is called, which stands for who acts with it and does not say who that is."""

    @property
    def sees_all_teams(self) -> bool:
        """Whether it may look at, and do, what is any team's, one at a time."""
        return self.all_teams and Scope.ADMIN in self.scopes

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def pool(self) -> Pool:
        """The workers that a worker with this token is one of."""
        return Pool(self.team, self.all_teams)


@dataclass(frozen=True)
class TokenRecord:
    """A token as it may be shown. Times are seconds since 1970."""

    id: str
    team: str
    name: str
    scopes: tuple[Scope, ...]
    all_teams: bool
    last_four: str
    created_at: float
    revoked_at: float | None


def new_token() -> str:
    """A token that nobody can guess: 256 random bits."""
    return f"bl-{secrets.token_urlsafe(32)}"


def _hashed(token: str) -> str:
    # A token is 256 random bits, so one round of SHA-256 is as good as a slow hash.
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class Tokens:
    """The tokens of the service; each belongs to a team."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any(self) -> bool:
        with self._database.reading() as connection:
            return bool(connection.scalar(select(func.count()).select_from(tokens)))

    def add(
        self,
        token: str,
        *,
        name: str,
        team: str = DEFAULT_TEAM,
        scopes: Iterable[Scope] = ALL_SCOPES,
        all_teams: bool = False,
    ) -> TokenRecord:
        """Notes a token, from which only its hash and its last four characters are kept."""
        token_id = f"token-{uuid.uuid4().hex[:16]}"
        with self._database.writing() as connection:
            connection.execute(
                insert(tokens).values(
                    sha256=_hashed(token),
                    id=token_id,
                    team=team,
                    name=name,
                    scopes=" ".join(scope for scope in Scope if scope in set(scopes)),
                    all_teams=all_teams,
                    last_four=token[-4:],
                    created_at=self._database.now(),
                )
            )
            return _shown(connection.execute(select(tokens).where(tokens.c.id == token_id)).one())

    def access_of(self, token: str) -> Access | None:
        """What a token opens; None where it is unknown or revoked.

        It is looked up by its hash, so how long that takes tells nothing of any token's characters.
        """
        sha256 = _hashed(token)
        query = select(tokens).where(tokens.c.sha256 == sha256, tokens.c.revoked_at.is_(None))
        with self._database.reading() as connection:
            found = connection.execute(query).first()
        if found is None or not hmac.compare_digest(found.sha256, sha256):
            return None
        return Access(found.team, frozenset(_scopes(found.scopes)), found.all_teams, found.name)

    def all(self) -> list[TokenRecord]:
        """Every token there ever was, revoked ones too, in the order in which they were made."""
        with self._database.reading() as connection:
            return [_shown(row) for row in connection.execute(select(tokens).order_by(tokens.c.created_at))]

    def revoke(self, token_id: str) -> TokenRecord:
        """Ends a token's life at once; one that was revoked before stays as it is."""
        with self._database.writing() as connection:
            connection.execute(
                update(tokens)
                .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
                .values(revoked_at=self._database.now())
            )
            found = connection.execute(select(tokens).where(tokens.c.id == token_id)).first()
        if found is None:
            raise NotFoundError(
                f"No such token: {token_id}. Nothing was revoked. `batch-llm token list` shows their ids.",
                code="token_not_found",
            )
        return _shown(found)


def _shown(row: Row[Any]) -> TokenRecord:
    values = {name: getattr(row, name) for name in TokenRecord.__annotations__}
    return TokenRecord(**values | {"scopes": _scopes(row.scopes)})


def _scopes(words: str) -> tuple[Scope, ...]:
    return tuple(Scope(word) for word in words.split())
