"""The words of the system: states, and the names of the columns that a batch adds to a table."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class BatchStatus(StrEnum):
    """The life of a batch, in the words of OpenAI's Batch API."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the batch will never change again."""
        return self in ENDED


ENDED: Final = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
LIVING: Final = frozenset(BatchStatus) - ENDED


class ChunkState(StrEnum):
    """Where a chunk stands. A ``leased`` chunk whose lease ran out may be claimed like a ``pending`` one."""

    PENDING = "pending"
    HELD = "held"
    """It waits, and its batch is paused."""
    LATER = "later"
    """It waits until the canary of its batch has passed."""
    LEASED = "leased"
    DONE = "done"
    DROPPED = "dropped"
    """Its batch ended before all of its rows were done."""


class PauseReason(StrEnum):
    """Who paused a batch, which says who lets it go on."""

    REQUESTED = "requested"
    """A person, or a program in its name."""
    UNWATCHED = "unwatched"
    """The service, since nobody watched it any more."""
    CANARY = "canary"
    """The service, until its first rows are judged."""


class CanaryState(StrEnum):
    """Where the first rows of a batch stand that the others wait for."""

    OPEN = "open"
    """They run, or are done and wait to be judged."""
    PASSED = "passed"


class DutyKind(StrEnum):
    """What the service itself does for a batch, in a process of its own."""

    PLAN = "plan"
    ASSEMBLE = "assemble"
    NOTIFY = "notify"
    """Tell the webhooks that the batch has ended."""


class FilePurpose(StrEnum):
    """What a stored file is for. ``dataset`` is ours, the others are OpenAI's."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    DATASET = "dataset"
    """A table, or a piece of one, for a dataset's source."""


class Scope(StrEnum):
    """What a token lets its holder do with what is its team's."""

    READ = "read"
    SUBMIT = "submit"
    WORKER = "worker"
    ADMIN = "admin"
    """All of the others."""


class RowStatus(StrEnum):
    """What became of one row. All but ``success`` count as failed or undone."""

    SUCCESS = "success"
    ERROR = "error"
    INVALID_OUTPUT = "invalid_output"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


FAILED: Final = (RowStatus.ERROR, RowStatus.INVALID_OUTPUT)
"""What a row is that was done and has failed; one that the batch did not come to is none."""

OUTPUT_COLUMNS: Final = (
    "llm_output",
    "llm_status",
    "llm_error",
    "llm_finish_reason",
    "llm_prompt_tokens",
    "llm_completion_tokens",
)
"""What a batch adds to the source's columns, in this order, behind the columns of an output schema. ``llm_output`` is
text (of several samples a list of it), followed by ``llm_confidence`` (a number from 0 to 1) where it is a choice; for
embeddings ``llm_embedding`` (a list of 32-bit floats) stands in its place. ``llm_error`` is text, the token counts are
64-bit integers. All but ``llm_status`` are null where they do not apply."""

ANSWERED: Final = frozenset({"stop", "length", "tool_calls"})
"""The finish reasons that make a result an answer; vLLM also says ``abort`` with HTTP 200 and half a text."""

LEAST_PRIORITY: Final = -1000
GREATEST_PRIORITY: Final = 1000
PRIORITIES: Final = {"low": -100, "normal": 0, "high": 100, "urgent": 500}
"""The words for priorities, with room between and above them."""

DEFAULT_TEAM: Final = "default"
CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
RESPONSES: Final = "/v1/responses"
TOKENIZE: Final = "/tokenize"
"""vLLM's: how many tokens a request has. Asked for estimates alone."""
ENDPOINTS: Final = (CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES)
"""What a request file may be for."""
TABLE_ENDPOINTS: Final = (CHAT_COMPLETIONS, EMBEDDINGS)
"""What a table may be for."""
