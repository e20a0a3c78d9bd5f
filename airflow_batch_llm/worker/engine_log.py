"""The log of an engine that a worker starts, and what stands in it of why the engine did not come up.

vLLM ends with the traceback of the process that waited in vain. What was wrong stands higher up, in the lines of the
process that died first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

CAUSES: Final = 3
"""How many different errors are told: the first ones, for the later ones follow from them."""
LONGEST_CAUSE: Final = 500
TAIL_LINES: Final = 15
MOST_BYTES: Final = 8 << 20
"""Of one start's log, so that one which goes wrong for half an hour is not read whole."""

_PREFIX: Final = re.compile(r"^(?:\([^()]* pid=\d+\) )?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] )?")
_CAUSE: Final = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception)|[\w./-]+(?: [\w-]+)*: error): *\S")


def why(path: Path, *, since: int) -> str:
    """The errors that a log names behind the byte ``since``; its last lines where it names none."""
    lines = _lines(path, since)
    causes = list(dict.fromkeys(line for line in (_PREFIX.sub("", line) for line in lines) if _CAUSE.match(line)))
    if causes:
        told = [line[:LONGEST_CAUSE] for line in causes[:CAUSES]]
        return "\n".join([f"The first errors in {path}:", *told])
    return "\n".join([f"The end of {path}:", *(lines[-TAIL_LINES:] or ["(nothing)"])])


def _lines(path: Path, since: int) -> list[str]:
    try:
        with path.open("rb") as log:
            log.seek(since)
            return log.read(MOST_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        return [f"(It cannot be read: {error.strerror}.)"]
