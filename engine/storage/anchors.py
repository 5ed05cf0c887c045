"""Whether a running engine's files still are where it opened them: a directory may be renamed, a cleaner come by.

What is open goes on working under any name; what is opened by name from then on would be another directory's, or a
second engine would find no lock. So the engine asks before it writes anything by name, and once in a while.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from shardengine.engine.errors import DirectoryChangedError


class Anchors:
    """Files that keep their place, and stay what they are, as long as an engine runs."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._known = {file: os.lstat(file) for file in files}

    def check(self) -> None:
        """Raises DirectoryChangedError when one of them is gone, or is another file."""
        for file, known in self._known.items():
            try:
                same = os.path.samestat(os.lstat(file), known)
            except OSError:
                same = False
            if not same:
                raise DirectoryChangedError(
                    f"{file} was moved, removed or replaced under the running engine",
                    hint="stop the engine; see whether the directory was renamed, or who cleans up there, and start it "
                    "where the directory lies now",
                    path=str(file),
                )
