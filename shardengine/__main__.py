"""`python -m shardengine` is the command `shardengine`."""

from __future__ import annotations

import sys

from shardengine.engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
