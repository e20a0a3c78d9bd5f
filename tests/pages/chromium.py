"""Where a Chromium is: ``python -m tests.pages.chromium`` says so, and as root installs Debian's where none is.

It always ends well: the tests that need one are skipped without it, and say why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

VARIABLE: Final = "CHROMIUM"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING: Final = (
    f"There is no Chromium: install one (on Debian `apt-get install chromium`), or name one in {VARIABLE}. The tests "
    "in a browser are skipped."
)
ARGUMENTS: Final = (
    "--no-sandbox",  # as root it does not start with one; it opens the pages of these tests alone
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """The path of the first one that is found."""
    names = [named] if (named := os.environ.get(VARIABLE)) else NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


def install(apt_get: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run([apt_get, *command], env=environment, check=False)


def main() -> None:
    apt_get = shutil.which("apt-get")
    if chromium() is None and VARIABLE not in os.environ and os.geteuid() == 0 and apt_get:
        install(apt_get)
    print(chromium() or MISSING)


if __name__ == "__main__":
    main()
