"""Programs for tests in a forked process, which has imported what they most often do."""

from __future__ import annotations

import sys

_PRELUDE = "import os, sys; from pathlib import Path; from shardengine import *; from tests.directories import *\n"


def live(program: str, *arguments: str) -> None:
    """Run it as `python -c` does, with these arguments."""
    sys.argv = ["-c", *arguments]
    exec(_PRELUDE + program, vars(sys.modules["__main__"]))  # noqa: S102  # written in the tests
