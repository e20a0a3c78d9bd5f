"""Patterns over whole paths, in a time that pattern and path bound together, however the pattern was made.

A path is read once from left to right, with all the places where the pattern may have got to. Nothing is tried again,
so there is no pattern that a path makes run for ever (as there is for a regular expression, within which no other
thread of the process runs).
"""

from __future__ import annotations

import re
from typing import Final

_STEPS: Final = re.compile(r"\*\*/|\*\*|[*?]|[^*?]", re.DOTALL)


class PathPattern:
    """``*`` and ``?`` stay within a folder, ``**`` does not, and ``**/`` is any number of folders, none among them.

    A set of places is an integer: bit n says that the first n steps of the pattern may be done.
    """

    def __init__(self, pattern: str) -> None:
        self.base = re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")[0]
        """The folder that all matches are below."""
        self._letters: dict[str, int] = {"/": 0}
        self._any_letter = 0
        self._stays = 0
        """Steps that take any number of characters within a folder."""
        self._goes_on = 0
        """Steps that take any number of characters."""
        self._leaps = 0
        """Where the three steps of ``**/`` may be left out."""
        self._steps = 0
        for step in _STEPS.findall(pattern.removeprefix(self.base)):
            self._add(step)
        self._first = self._onwards(1)

    def matches(self, path: str) -> bool:
        return bool(self._places(path) >> self._steps & 1)

    def leads_below(self, folder: str) -> bool:
        """Whether anything below a folder may match."""
        return bool(self._places(f"{folder.rstrip('/')}/"))

    def _add(self, step: str) -> None:
        here = 1 << self._steps
        if step == "**/":
            self._leaps |= here
            self._goes_on |= here << 1
            self._letters["/"] |= here << 2
            self._steps += 3
            return
        if step == "**":
            self._goes_on |= here
        elif step == "*":
            self._stays |= here
        elif step == "?":
            self._any_letter |= here
        else:
            self._letters[step] = self._letters.get(step, 0) | here
        self._steps += 1

    def _places(self, path: str) -> int:
        """Where the pattern may have got to behind ``path``; 0 where the two have parted."""
        if not path.startswith(self.base):
            return 0
        places = self._first
        for letter in path[len(self.base) :]:
            same_folder = letter != "/"
            taken = self._letters.get(letter, 0) | (self._any_letter if same_folder else 0)
            kept = self._goes_on | (self._stays if same_folder else 0)
            places = self._onwards((places & taken) << 1 | places & kept)
            if not places:
                break
        return places

    def _onwards(self, places: int) -> int:
        """With the places that are reached from these by taking no character."""
        skipped = self._stays | self._goes_on | self._leaps
        while (more := places | (places & skipped) << 1 | (places & self._leaps) << 3) != places:
            places = more
        return places
