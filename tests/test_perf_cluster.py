"""`perf cluster`, with real servers: it prints what it measured, and a wrong answer gives no figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from perf import publishing
from perf.__main__ import main
from shardengine.node import JetStreamLog

CLUSTER = ["cluster", "--proposals", "40", "--callers", "1,4", "--shards", "1", "--value-bytes", "20", "--rounds", "1"]


def test_cluster_prints_a_row_for_each_side_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CLUSTER, "--dir", str(tmp_path), "--json", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out").read_text())["cluster"]
    assert [(row["callers"], row["side"]) for row in rows] == [
        (callers, side) for callers in (1, 4) for side in ("JetStreamLog", "bare publish", "LocalLog")
    ]
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "LocalLog" in line]
    assert printed == ["1", "4"]
    assert all(row["over_bare"] == 1 for row in rows if row["side"] == "bare publish")
    assert rows[0]["entries_per_frame"] == 1 < rows[3]["entries_per_frame"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_publish_that_was_lost_and_a_frame_that_was_changed_give_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = publishing._Publisher.publish

    async def lossy(self: publishing._Publisher, frames: Sequence[bytes]) -> None:
        if len(self._answers) == 0 and frames[0][-1] % 4:
            await publish(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(publishing._Publisher, "publish", lossy)
        assert main([*CLUSTER, "--dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "check failed: bare publish: the stream holds" in said.err and "proposals/s" not in said.out
    append = JetStreamLog.append

    async def twice(self: JetStreamLog, frames: Sequence[bytes]) -> list[int]:
        await append(self, frames)
        return await append(self, frames)

    monkeypatch.setattr(JetStreamLog, "append", twice)
    assert main([*CLUSTER, "--dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "check failed: JetStreamLog" in said.err and "proposals/s" not in said.out
