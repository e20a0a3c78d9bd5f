"""Every migration goes forward over tables with data in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from airflow_batch_llm.models import Scope
from airflow_batch_llm.store import migrations
from airflow_batch_llm.store.batches import Batches
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tokens import Tokens
from airflow_batch_llm.store.workers import Workers

FIRST_DATA = (
    "INSERT INTO files (id, team, purpose, filename, bytes, sha256, storage_key, created_at) "
    "VALUES ('file-1', 'default', 'batch', 'x', 3, 'h', 'files/file-1', 1.0)",
    "INSERT INTO batches (id, team, key, generation, content_sha256, endpoint, model, dataset, status, created_at, "
    "rows_total, prompt_tokens, input_file_id) "
    "VALUES ('batch_1', 'default', 'k', 1, 'h', '/v1/chat/completions', 'm', '{}', 'completed', 1.0, 7, 70, 'file-1')",
    "INSERT INTO chunks (id, batch_id, team, number, model, endpoint, priority, state, rows, tokens, storage_key, "
    "bytes, sha256) VALUES (1, 'batch_1', 'default', 0, 'm', '/v1/chat/completions', 0, 'done', 7, 70, 'c', 1, 'h')",
    "INSERT INTO parts (chunk_id, attempt, number, batch_id, storage_key, bytes, sha256, rows, rows_failed, "
    "prompt_tokens, cached_tokens, completion_tokens, gpu_seconds, committed_at) "
    "VALUES (1, 1, 0, 'batch_1', 'p', 1, 'h', 7, 0, 70, 0, 0, 0.0, 1.0)",
    "INSERT INTO workers (id, team, name, version, registered_at, last_seen_at, gone) "
    "VALUES ('worker-1', 'default', 'w', '1', 1.0, 1.0, 0)",
    "INSERT INTO worker_models (worker_id, model, endpoint) VALUES ('worker-1', 'm', '/v1/chat/completions')",
)


def _at_first_version(url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    engine = create_engine(url)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with engine.begin() as connection:
        for statement in FIRST_DATA:
            connection.execute(text(statement))
    engine.dispose()


def test_a_store_of_the_first_version_is_brought_forward_with_all_that_is_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    _at_first_version(url)
    database = Database(url)
    database.migrate()
    batch = Batches(database).get("default", "batch_1")
    assert (batch["rows_total"], batch["prompt_tokens"], batch["input_file_id"]) == (7, 70, "file-1")
    assert (batch["expiring"], batch["reasoning_tokens"], batch["deadline"]) == (False, 0, None)
    assert Workers(database).body_fields("default", "/v1/chat/completions") is None
    with database.reading() as connection:
        assert connection.scalar(text("SELECT reasoning_tokens FROM parts")) == 0
    database.close()


def test_a_token_and_a_worker_of_before_there_were_scopes_may_still_do_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    _at_first_version(url)
    database = Database(url)
    with database.writing() as connection:
        for name in ("first", "second"):
            hashed = hashlib.sha256(name.encode()).hexdigest()
            values = {"sha256": hashed, "name": name}
            insert = "INSERT INTO tokens (sha256, team, name, created_at) VALUES (:sha256, 'default', :name, 1.0)"
            connection.execute(text(insert), values)
    database.migrate()
    held = Tokens(database)
    access = held.access_of("first")
    assert access is not None
    assert (access.team, access.scopes, access.all_teams) == ("default", frozenset(Scope), True)
    assert len({record.id for record in held.all()}) == 2
    Workers(database).saw(Pool("default", all_teams=True), "worker-1")
    database.close()
