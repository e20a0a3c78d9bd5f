"""Puts the demo's modules on Python's path where pytest has not: for modules that are run by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

DEMO = str(Path(__file__).resolve().parent.parent / "dags_examples" / "demo")

if DEMO not in sys.path:
    sys.path.append(DEMO)
