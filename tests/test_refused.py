"""What an engine is refused, with an error that says why: another directory, machine, limit, setting, or process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from shardengine import (
    ConfigError,
    Engine,
    EngineConfig,
    FormatError,
    KeyValue,
    MachineImportError,
    MachineMismatchError,
    ShardCountMismatchError,
)
from shardengine.engine.run.resources import check_resource_limits
from shardengine.engine.storage.files import read_checked, write_checked
from shardengine.engine.storage.generations import DirectoryConfig
from tests.directories import applies_ten, contents, holds_ten, opened, refused_unchanged
from tests.machines import LaterLedger, Ledger, Other


def test_another_shard_count_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    refused_unchanged(tmp_path, ShardCountMismatchError, "2 shards, not 3.*reshard", shards=3)
    assert opened(tmp_path, holds_ten, shards=2).outcome == "opened"


def test_a_directory_of_another_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    known = read_checked(tmp_path / "config", DirectoryConfig)
    for other in (2, 99):
        write_checked(tmp_path / "config", msgspec.structs.replace(known, format=other))
        refused_unchanged(tmp_path, FormatError, f"format {other} .*this version reads format 3")
    (tmp_path / "config").write_bytes(b"not json")
    refused_unchanged(tmp_path, FormatError, "not readable")


def test_a_directory_of_another_machine_or_a_later_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    refused_unchanged(tmp_path, MachineMismatchError, "'shardengine.kv' version 1, not 'test.other'", machine=Other)
    ledger = tmp_path / "ledger"
    opened(ledger, shards=2, machine=Ledger)
    opened(ledger, machine=LaterLedger)
    refused_unchanged(ledger, MachineMismatchError, "version 2, not 'test.ledger' version 1", machine=Ledger)


@pytest.mark.parametrize(
    ("created", "asked"),
    [
        ({"key_bytes_max": 64}, {"key_bytes_max": 65}),
        ({"value_bytes_max": 64}, {"value_bytes_max": 65}),
        ({}, {"bad_entry": "reject"}),
    ],
)
def test_limits_are_fixed_when_a_directory_is_created(
    tmp_path: Path, created: dict[str, Any], asked: dict[str, Any]
) -> None:
    opened(tmp_path, applies_ten, shards=2, config=EngineConfig(**created))
    refused_unchanged(tmp_path, ConfigError, "cannot change; leave the setting out", config=EngineConfig(**asked))
    assert opened(tmp_path, holds_ten, config=EngineConfig(**created)).outcome == "opened"
    assert opened(tmp_path, holds_ten).outcome == "opened"


def test_a_wrong_setting_is_refused_when_the_engine_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards = 0"):
        Engine(tmp_path / "db", shards=0)
    with pytest.raises(ConfigError, match="shards=2, but config says 3"):
        Engine(tmp_path / "db", shards=2, config=EngineConfig(shards=3))
    assert not (tmp_path / "db").exists()


def test_a_process_that_may_not_map_or_write_that_much_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(ConfigError, match=r"map_bytes=68719476736 .*RLIMIT_AS allows this process 1073741824"):
        Engine(tmp_path / "db").start()
    assert not (tmp_path / "db").exists()
    with monkeypatch.context() as unlimited:
        unlimited.setattr("resource.getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        opened(tmp_path / "db", applies_ten, shards=2)
    with pytest.raises(ConfigError, match="over 2 shards"):
        Engine(tmp_path / "db").start()
    check_resource_limits(EngineConfig(map_bytes=(1 << 29) - (32 << 20)), 2)
    with pytest.raises(ConfigError, match="over 3 shards"):
        check_resource_limits(EngineConfig(map_bytes=(1 << 29) - (32 << 20)), 3)


def test_a_machine_that_workers_cannot_import_is_refused(tmp_path: Path) -> None:
    class Local(KeyValue):
        pass

    with pytest.raises(MachineImportError, match="importable module"):
        Engine(tmp_path / "db", machine=Local)
    main = type("Main", (KeyValue,), {"__module__": "__main__"})
    with pytest.raises(MachineImportError, match=r"__main__\.Main"):
        Engine(tmp_path / "db", machine=main)
    assert not (tmp_path / "db").exists()


def test_a_machine_in_a_module_that_workers_do_not_find_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghost = ModuleType("ghost")
    machine = type("Ghost", (KeyValue,), {"__module__": "ghost", "name": "test.ghost"})
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    for _ in range(2):
        with pytest.raises(MachineImportError, match=r"cannot import ghost:Ghost.*top level") as caught:
            Engine(tmp_path / "db", shards=2, machine=machine).start()
        assert caught.value.machine == "ghost:Ghost"
    assert "set-aside" not in " ".join(contents(tmp_path / "db"))
