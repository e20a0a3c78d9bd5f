"""How many tokens a request is taken to have where nobody has counted: it decides where a chunk is cut, and no more."""

from __future__ import annotations

from typing import Any, Final

CHARACTERS_PER_TOKEN: Final = 4
"""The usual rule of thumb for English and code."""
BYTES_PER_TOKEN: Final = CHARACTERS_PER_TOKEN
TOKENS_PER_MESSAGE: Final = 8
ANSWER_TOKENS: Final = 256
"""What an answer is taken to need where no limit is set."""
MOST_ANSWER_TOKENS: Final = 1_024
"""What it is taken to need at most: many set the limit as high as it goes, and few answers go there."""


def answer_estimate(limit: Any) -> int:
    """What an answer is taken to need under a limit, which may be anything that a client sent."""
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return min(limit, MOST_ANSWER_TOKENS)
    return ANSWER_TOKENS
