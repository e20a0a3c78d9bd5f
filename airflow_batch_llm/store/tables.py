"""The tables. Times are seconds since 1970 on the store's clock; everything of value belongs to a team."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

NO_DUE: Final = 1e12
"""A time beyond all deadlines."""

# SQLite numbers rows by itself only in a column of type INTEGER.
BigId: Final = BigInteger().with_variant(Integer(), "sqlite")

tokens: Final = Table(
    "tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("id", String(64), nullable=False, server_default=""),
    Column("team", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    Column("scopes", String(64), nullable=False, server_default=""),
    Column("all_teams", Boolean, nullable=False, server_default=false()),
    Column("last_four", String(4), nullable=False, server_default=""),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Index(None, "id", unique=True),
)

files: Final = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("team", String(128), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("deleted_at", Double),
    Column("dropped_at", Double),
    Index(None, "team", "created_at"),
    Index(None, "dropped_at", "expires_at"),
)

_OVERVIEW: Final = ("status", "paused", "dag_id", "priority", "raised", "expires_at")
"""What batches are mostly filtered, counted and ordered by: with it in the index, that reads none of their records. A
model's name does not fit as well: Postgres takes 2,704 bytes in an index, and names are up to 512 characters."""

batches: Final = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("team", String(128), nullable=False),
    Column("key", String(512), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("series", String(512)),
    Column("group", String(512)),
    Column("superseded", Boolean, nullable=False, server_default=false()),
    Column("holder", String(128)),
    Column("content_sha256", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("model", String(512)),
    Column("dataset", JSON),
    Column("input_file_id", String(64), ForeignKey(files.c.id)),
    Column("completion_window", String(16)),
    Column("deadline", Double),
    Column("output_seconds", Integer),
    Column("metadata", JSON),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("fair_group", String(512), nullable=False, server_default=""),
    Column("raised", Boolean, nullable=False, server_default=false()),
    Column("status", String(16), nullable=False),
    Column("paused", String(16)),
    Column("pause_unwatched_after", Integer),
    Column("unwatched_at", Double),
    Column("canary_rows", Integer),
    Column("canary", String(8)),
    Column("expiring", Boolean, nullable=False, server_default=false()),
    Column("errors", JSON),
    Column("trouble", Text),
    Column("created_at", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("expires_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("failed_at", Double),
    Column("expired_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    Column("plan_key", Text),
    Column("rows_total", BigInteger, nullable=False, server_default="0"),
    Column("rows_done", BigInteger, nullable=False, server_default="0"),
    Column("rows_failed", BigInteger, nullable=False, server_default="0"),
    Column("chunks_total", Integer, nullable=False, server_default="0"),
    Column("chunks_done", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("gpu_seconds", Double, nullable=False, server_default="0"),
    Column("output_file_id", String(64), ForeignKey(files.c.id)),
    Column("error_file_id", String(64), ForeignKey(files.c.id)),
    Column("manifest", JSON),
    Column("target_hashes", JSON),
    Column("reuse", String(8), nullable=False, server_default="auto"),
    Column("dry_run", Boolean, nullable=False, server_default=false()),
    Column("estimate", JSON),
    Column("engine_identity", String(128)),
    Column("rows_duplicate", BigInteger, nullable=False, server_default="0"),
    Column("rows_reused", BigInteger, nullable=False, server_default="0"),
    Column("deployment", String(512)),
    Column("dag_id", String(512)),
    Column("task_id", String(512)),
    Column("run_id", String(512)),
    Column("map_index", Integer),
    Column("staged_dropped_at", Double),
    Column("bytes_dropped_at", Double),
    UniqueConstraint("team", "key", "generation"),
    Index(None, "team", "series"),
    Index(None, "team", "fair_group", "status"),
    Index(None, "team", "group", "created_at"),
    Index(None, "team", "run_id", "dag_id"),
    Index("ix_batches_overview", "team", "created_at", "id", *_OVERVIEW),
    Index(None, "status"),
    Index(None, "staged_dropped_at"),
    Index(None, "bytes_dropped_at"),
)

chunks: Final = Table(
    "chunks",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("batch_id", String(64), ForeignKey(batches.c.id), nullable=False),
    Column("team", String(128), nullable=False),
    Column("number", Integer, nullable=False),
    Column("model", String(512), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("due", Double, nullable=False, server_default="1000000000000"),
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("worker_id", String(64)),
    Column("lease_until", Double),
    Column("rows", Integer, nullable=False),
    Column("rows_done", Integer, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("only", JSON(none_as_null=True)),  # the rows that it is about, where it is a piece of another; else all
    Column("alone", Boolean, nullable=False, server_default=false()),
    Column("suspects", JSON(none_as_null=True)),
    Column("deaths", JSON(none_as_null=True)),
    Column("barren", Integer, nullable=False, server_default="0"),
    UniqueConstraint("batch_id", "number"),
    Index("ix_chunks_claim", "state", "model", "endpoint", "team", text("priority DESC"), "due", "turn", "id"),
    Index("ix_chunks_lease", "state", "lease_until"),
)

deleted_chunks: Final = Table(
    "deleted_chunks",
    metadata,
    Column("highest", BigInteger, primary_key=True, autoincrement=False),
)
"""On SQLite, the highest id that a deleted chunk had, kept by triggers: SQLite gives the highest id again once its row
is gone, and the lease of a deleted chunk would then hold for another batch's."""

attempts: Final = Table(
    "attempts",
    metadata,
    Column("chunk_id", BigId, ForeignKey(chunks.c.id), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("worker_id", String(64), nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("began_at", Double),
    Column("ended_at", Double),
    Column("outcome", String(16)),
    Column("detail", Text),
    Column("rows", Integer, nullable=False, server_default="0"),
    Column("rows_lost", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("gpu_seconds", Double, nullable=False, server_default="0"),
)

parts: Final = Table(
    "parts",
    metadata,
    Column("chunk_id", BigId, ForeignKey(chunks.c.id), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("batch_id", String(64), ForeignKey(batches.c.id), nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("rows_failed", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("gpu_seconds", Double, nullable=False),
    Column("committed_at", Double, nullable=False),
    Column("place", Integer, nullable=False, server_default="0"),
    # With all that is added up over times, so that no part itself is read: half the cost for tens of thousands.
    Index(
        "ix_parts_batch_id_committed_at",
        *("batch_id", "committed_at", "rows", "rows_failed", "prompt_tokens", "completion_tokens"),
    ),
    Index(None, "batch_id", "place"),
    Index(None, "committed_at"),
)

acts: Final = Table(
    "acts",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("batch_id", String(64), ForeignKey(batches.c.id), nullable=False),
    Column("at", Double, nullable=False),
    Column("act", String(16), nullable=False),
    Column("by", String(128), nullable=False),
    Index(None, "batch_id", "id"),
)

workers: Final = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("team", String(128), nullable=False),
    Column("name", String(256), nullable=False),
    Column("version", String(64), nullable=False),
    Column("registered_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("all_teams", Boolean, nullable=False, server_default=false()),
    Column("server", String(64)),
    Index(None, "name"),
)

worker_models: Final = Table(
    "worker_models",
    metadata,
    Column("worker_id", String(64), ForeignKey(workers.c.id), primary_key=True),
    Column("model", String(512), primary_key=True),
    Column("endpoint", String(64), primary_key=True),
    Column("engine_identity", String(128)),
    Column("body_fields", JSON),
    Index(None, "model"),
)

team_secrets: Final = Table(
    "team_secrets",
    metadata,
    Column("team", String(128), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
)

index_files: Final = Table(
    "index_files",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("team", String(128), nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("level", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Index(None, "team", "level"),
)

index_batches: Final = Table(
    "index_batches",
    metadata,
    Column("file_id", BigId, ForeignKey(index_files.c.id), primary_key=True),
    Column("batch_id", String(64), ForeignKey(batches.c.id), primary_key=True),
    Column("expires_at", Double, nullable=False),
    Index(None, "batch_id"),
)

duties: Final = Table(
    "duties",
    metadata,
    Column("batch_id", String(64), ForeignKey(batches.c.id), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("holder", String(128)),
    Column("lease_until", Double),
    Column("not_before", Double),
    Column("done", Boolean, nullable=False),
    Column("losses", Integer, nullable=False, server_default="0"),
    Index(None, "kind", "done"),
)

cleaning: Final = Table(
    "cleaning",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("store_id", String(32), nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("holder", String(128)),
    Column("lease_until", Double),
    Column("not_before", Double),
    Column("place", Text),
    Column("swept_at", Double),
    Column("trouble", Text),
)
