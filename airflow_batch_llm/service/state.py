"""What every request of the service works with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.places import TeamPlaces
from airflow_batch_llm.service.source_files import PARAM as SOURCE
from airflow_batch_llm.service.source_files import SourceFinder
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.storage import open_storage
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.batches import Batches
from airflow_batch_llm.store.chunks import Chunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.files import Files
from airflow_batch_llm.store.index_files import IndexFiles
from airflow_batch_llm.store.life import BatchLife
from airflow_batch_llm.store.overview import Overviews
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.stories import Stories
from airflow_batch_llm.store.target_notes import TargetNotes
from airflow_batch_llm.store.tokens import ALL_SCOPES, Tokens, new_token
from airflow_batch_llm.store.watching import Watching
from airflow_batch_llm.store.worker_load import WorkerLoad
from airflow_batch_llm.store.workers import Workers

LEAST_CHARACTERS: Final = 20
"""Of a token that the operator chose: nothing slows down who tries one after another."""


@dataclass(frozen=True)
class ServiceState:
    """The stores, the storage and the settings of one running service."""

    settings: ServiceSettings
    database: Database
    storage: Storage
    places: TeamPlaces
    tokens: Tokens
    files: Files
    batches: Batches
    life: BatchLife
    pauses: Pauses
    watching: Watching
    stories: Stories
    target_notes: TargetNotes
    chunks: Chunks
    duties: Duties
    workers: Workers
    worker_load: WorkerLoad
    overviews: Overviews
    index_files: IndexFiles

    @classmethod
    def open(cls, settings: ServiceSettings) -> ServiceState:
        """Opens (at the first start: makes) everything below ``settings.home``."""
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = Database(settings.store_url)
        database.migrate()
        state = cls(
            settings=settings,
            database=database,
            storage=open_storage(settings),
            places=TeamPlaces(settings),
            tokens=Tokens(database),
            files=Files(database),
            batches=Batches(database),
            life=BatchLife(database),
            pauses=Pauses(database),
            watching=Watching(database),
            stories=Stories(database),
            target_notes=TargetNotes(database),
            chunks=Chunks(database),
            duties=Duties(database),
            workers=Workers(database),
            worker_load=WorkerLoad(database),
            overviews=Overviews(database),
            index_files=IndexFiles(database),
        )
        state._ensure_token()
        return state

    def finder(self, team: str) -> SourceFinder:
        """Finds the files of a source for a team."""
        places = self.places.of(team)
        return SourceFinder(places, self.storage, lambda file_id: self.files.get(team, file_id, param=SOURCE))

    def _ensure_token(self) -> None:
        """Makes the first token. The store keeps its hash; the token itself lies in a file only its owner can read.

        Of several services that start at once on an empty store one makes it.
        """
        with self.database.alone("first token"):
            if not self.tokens.any():
                self._make_token()

    def _make_token(self) -> None:
        token = os.environ.get(TOKEN_VARIABLE) or new_token()
        if len(token) < LEAST_CHARACTERS:
            raise InvalidRequestError(
                f"The token in {TOKEN_VARIABLE} has {len(token)} characters, and whoever guesses it may do everything: "
                f"it needs at least {LEAST_CHARACTERS}, drawn at random. No token was made. Leave the variable out to "
                "have the service draw one.",
                code="token_too_short",
            )
        if not (token.isascii() and token.isprintable()):
            raise InvalidRequestError(
                f"The token in {TOKEN_VARIABLE} has characters that no HTTP header can carry, so no client could use "
                "it. No token was made. Leave the variable out to have the service draw one.",
                code="token_not_ascii",
            )
        path = self.settings.token_path
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token + "\n")
        self.tokens.add(token, name="first", scopes=ALL_SCOPES, all_teams=True)
