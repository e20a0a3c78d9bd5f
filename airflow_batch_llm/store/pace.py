"""What earlier batches have taken, for estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import func, select

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches

LOOKED_AT: Final = 50
"""How many of the newest batches count: engines and prompts change."""


class PaceOfBatches:
    """Sums over the newest batches of a model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_model(self, model: str, endpoint: str) -> tuple[int, float]:
        """The tokens that engines have computed for a model (whatever the team), and the seconds they took."""
        newest = (
            select(batches.c.prompt_tokens, batches.c.cached_tokens, batches.c.completion_tokens, batches.c.gpu_seconds)
            .where(batches.c.model == model, batches.c.endpoint == endpoint, batches.c.gpu_seconds > 0)
            .where(batches.c.dry_run.is_(False))
            .order_by(batches.c.created_at.desc())
            .limit(LOOKED_AT)
            .subquery()
        )
        tokens = func.sum(newest.c.prompt_tokens - newest.c.cached_tokens + newest.c.completion_tokens)
        with self._database.reading() as connection:
            found = connection.execute(select(tokens, func.sum(newest.c.gpu_seconds))).one()
        return int(found[0] or 0), float(found[1] or 0.0)

    def answer_tokens(self, team: str, model: str, same: Callable[[Mapping[str, Any]], bool]) -> float | None:
        """Answer tokens a row in those of the team's newest batches whose spec is the ``same``; None without any."""
        query = (
            select(
                batches.c.dataset,
                batches.c.completion_tokens,
                batches.c.rows_done,
                batches.c.rows_duplicate,
                batches.c.rows_reused,
            )
            .where(batches.c.team == team, batches.c.model == model, batches.c.completion_tokens > 0)
            .where(batches.c.dry_run.is_(False), batches.c.dataset.is_not(None))
            .order_by(batches.c.created_at.desc())
            .limit(LOOKED_AT)
        )
        with self._database.reading() as connection:
            found = [row for row in connection.execute(query) if row.dataset and same(row.dataset)]
        rows = sum(max(0, row.rows_done - row.rows_duplicate - row.rows_reused) for row in found)
        return sum(row.completion_tokens for row in found) / rows if rows else None
