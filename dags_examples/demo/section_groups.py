"""What the demo's model is asked, what it may answer, and which packages it has never seen.

The only place that says which of Debian's sections make up a group; the Dag, the training and the checks agree with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

PROMPT: Final = "Which kind of package is this?\n\n{package}: {summary}"

SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "library": ("debug", "introspection", "libdevel", "libs", "oldlibs"),
    "language": (
        *("cli-mono", "gnu-r", "gnustep", "golang", "haskell", "java", "javascript", "lisp"),
        *("ocaml", "perl", "php", "python", "ruby", "rust", "zope"),
    ),
    "development": ("devel", "embedded", "interpreters", "vcs"),
    "documentation": ("doc", "localization"),
    "system": ("admin", "database", "kernel", "metapackages", "misc", "otherosfs", "shells", "tasks", "utils"),
    "network": ("comm", "httpd", "mail", "net", "news", "web"),
    "science": ("education", "electronics", "hamradio", "math", "science"),
    "games": ("games",),
    "media": ("graphics", "sound", "video"),
    "desktop": ("editors", "fonts", "gnome", "kde", "tex", "text", "x11", "xfce"),
}
GROUPS: Final[Sequence[str]] = tuple(SECTIONS)
GROUP_OF: Final[Mapping[str, str]] = {section: group for group, names in SECTIONS.items() for section in names}

HELD_OUT_PERCENT: Final = 10


def is_held_out(source: str) -> bool:
    """Whether the packages built from this source package are kept from the training.

    Packages of one source, and sources that differ in a number only (``gcc-11`` and ``gcc-12``), fall to the same side.
    """
    stem = "".join(character for character in source if not character.isdigit()).strip("-.+")
    number = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")
    return number % 100 < HELD_OUT_PERCENT
