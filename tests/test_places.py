"""What lies above, in and beside a data directory: file systems that sync no names, and files that nobody of ours put
there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine.files import make_directories
from tests.directories import applies_ten, config, holds_ten, opened

SMALL = config("process")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_a_directory_lies_below_one_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, sync, refused = tmp_path / "db", os.fsync, list[str]()
    path.mkdir(0o700)

    def refuse(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name == str(tmp_path):
            refused.append(name)
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    opened(path, applies_ten, shards=2, config=SMALL)
    opened(path, holds_ten, config=SMALL)
    assert refused


def test_the_name_of_a_mount_point_is_not_ours_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, sync, synced = Path("/proc"), os.fsync, list[str]()

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make_directories(mounted)
    assert synced == []
