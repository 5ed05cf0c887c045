"""The command line in a forked process, which has all imported that its commands do."""

from __future__ import annotations

import os
import sys

import shardengine.engine.cli.app
import shardengine.engine.engine
import shardengine.engine.node.node
import shardengine.engine.run.shell
import shardengine.engine.verify  # noqa: F401
from shardengine.engine.cli import main


def live(*arguments: str) -> None:
    """As `python -m shardengine` is: its modules are also where PYTHONPATH says."""
    given = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.path[1:1] = [path for path in given if path not in sys.path]
    sys.argv = ["shardengine", *arguments]
    sys.exit(main())
