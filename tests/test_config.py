"""Settings: where they come from, which source wins, and what each wrong one is told."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardengine import Engine
from shardengine.engine.config import (
    ENV_PREFIX,
    KEY_BYTES_MAX_DEFAULT,
    VALUE_BYTES_MAX_DEFAULT,
    EngineConfig,
    _warn_of,
    load_config,
    resolve_config,
)
from shardengine.engine.errors import ConfigError

FIELDS = msgspec.structs.fields(EngineConfig)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(**values: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**values)
    return caught.value


def test_the_defaults_are_valid_and_an_entry_of_default_size_fits_a_part() -> None:
    config = EngineConfig()
    assert config == resolve_config(environ={})
    assert config.part_bytes_max > KEY_BYTES_MAX_DEFAULT + VALUE_BYTES_MAX_DEFAULT
    assert config.group_bytes <= config.part_bytes_max


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EngineConfig().shards = 2  # type: ignore[misc]


def test_every_setting_says_what_it_means() -> None:
    body = inspect.getsource(EngineConfig)
    for field in FIELDS:
        declaration = body.index(f"    {field.name}: ")
        assert '"""' in body[declaration:].splitlines()[1], field.name


def test_every_number_has_its_unit_last_unless_it_counts_things() -> None:
    counted = {"shards", "in_flight_chunks_max", "views_max", "readers_max", "snapshots_keep"}
    numbers = {f.name for f in FIELDS if "int" in str(f.type)}
    assert {n for n in numbers - counted if not n.removesuffix("_max").endswith(("_bytes", "_ms", "_us"))} == set()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("shards", 0, "int >= 1"),
        ("shards", 257, "int <= 256"),
        ("shards", True, "int | null"),
        ("shards", "2", "int | null"),
        ("shards", 2.0, "int | null"),
        ("durability", "disk", "'process' or 'power'"),
        ("durability", None, "'process' or 'power'"),
        ("bad_entry", "ignore", "'fail' or 'reject'"),
        ("after_power_loss", 1, "'refuse' or 'empty'"),
        ("key_bytes_max", 481, "int <= 480"),
        ("value_bytes_max", 0, "int >= 1"),
        ("map_bytes", (1 << 20) + 1, "int that's a multiple of 4096"),
        ("map_bytes", 4096, "int >= 1048576"),
        ("ring_bytes", 65_535, "int >= 65536"),
        ("ring_bytes", 65_537, "int that's a multiple of 4096"),
        ("worker_timeout_ms", 0, "int >= 1"),
        ("views_max", -1, "int >= 1"),
        ("in_flight_bytes_max", 1 << 70, "int <= 8589934592"),
    ],
)
def test_an_impossible_value_names_key_value_expectation_and_source(key: str, value: object, expected: str) -> None:
    error = refused(**{key: value})
    assert (error.key, error.value, error.source, error.expected) == (key, value, f"argument {key}", expected)
    assert str(error).startswith(f"{key} = {value!r} (argument {key}): expected {expected}")
    assert error.hint


@pytest.mark.parametrize(("key", "room_bytes"), [("ring_bytes", 64 * 1024), ("map_bytes", 1 << 20)])
def test_a_value_limit_that_fits_nowhere_is_a_contradiction(key: str, room_bytes: int) -> None:
    error = refused(value_bytes_max=1 << 20, **{key: room_bytes})
    assert set(error.keys) == {"value_bytes_max", key}
    assert f"set {key} to " in error.hint


def test_the_hint_of_a_contradiction_resolves_it() -> None:
    error = refused(value_bytes_max=1 << 20, ring_bytes=64 * 1024)
    advised = int(error.hint.split("set ring_bytes to ")[1].split()[0])
    assert EngineConfig(value_bytes_max=1 << 20, ring_bytes=advised).ring_bytes == advised
    assert refused(value_bytes_max=1 << 20, ring_bytes=advised - 4096).keys == ("value_bytes_max", "ring_bytes")


def test_a_small_ring_lowers_the_group_that_holds_and_not_the_setting() -> None:
    config = EngineConfig(ring_bytes=64 * 1024)
    assert (config.part_bytes_max, config.group_bytes) == (16 * 1024, 16 * 1024)
    assert config.group_bytes_max == EngineConfig().group_bytes_max


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, 'shards = 3\nring_bytes = 1_048_576\ndurability = "power"\n')
    assert load_config(path) == EngineConfig(shards=3, ring_bytes=1 << 20, durability="power")


def test_the_library_reads_file_environment_and_arguments_and_a_plain_config_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "views_max = 2\nsnapshots_keep = 5\nshards = 3")
    monkeypatch.setenv(ENV_PREFIX + "SHARDS", "7")
    monkeypatch.setenv(ENV_PREFIX + "SNAPSHOTS_KEEP", "6")
    assert load_config() == EngineConfig(shards=7, snapshots_keep=6)
    assert load_config(path) == EngineConfig(views_max=2, snapshots_keep=6, shards=7)
    assert load_config(path, shards=4, views_max=None) == EngineConfig(views_max=2, snapshots_keep=6, shards=4)
    assert EngineConfig().shards is None


def test_an_engine_without_a_configuration_takes_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_PREFIX + "SHARDS", "3")
    with_environment = Engine(tmp_path / "a")
    with_environment.start()
    shards = with_environment.stats()["shards"]
    with_environment.stop()
    with_environment.close_storage()
    assert shards == 3
    monkeypatch.setenv(ENV_PREFIX + "RING_BYTES", "lots")
    with pytest.raises(ConfigError, match="environment variable SHARDENGINE_RING_BYTES"):
        Engine(tmp_path / "b")
    Engine(tmp_path / "b", config=EngineConfig())


def test_later_sources_win_and_leave_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "shards = 1\nviews_max = 10\nring_bytes = 65_536\n")
    environ = {"SHARDENGINE_SHARDS": "2", "SHARDENGINE_VIEWS_MAX": "20", "HOME": "/", "SHARDENGINEX": "no prefix"}
    config = resolve_config(path=path, environ=environ, overrides={"shards": 3, "durability": None})
    assert config == EngineConfig(shards=3, views_max=20, ring_bytes=65_536)


def test_a_file_with_an_unknown_key_is_refused_by_name_and_told_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "ring_byte = 65536\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (f"no setting is called ring_byte (file {path}) (did you mean ring_bytes?)")


def test_a_key_that_resembles_nothing_is_told_all_of_them() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(environ={}, overrides={"colour": 1})
    assert caught.value.source == "argument colour"
    assert all(field.name in caught.value.hint for field in FIELDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shards = two", "not TOML"),
        ("shards = 1\nshards = 2", "not TOML"),
        ('shards = "2"', "shards = '2'"),
        ("[shards]\ncount = 2", "shards = {'count': 2}"),
        ("[engine]\nshards = 2", "no setting is called engine"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"file .*settings\.toml") as caught:
        load_config(path)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xe9")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin"):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("65536", 65_536), ("65_536", 65_536), (" 1_048_576 ", 1 << 20)],
)
def test_environment_numbers_may_have_underscores(text: str, value: int) -> None:
    assert resolve_config(environ={"SHARDENGINE_RING_BYTES": text}).ring_bytes == value


@pytest.mark.parametrize("text", ["_1", "1__0", "64k", "sixty", "65536,0"])
def test_an_environment_number_that_is_none_is_refused_with_the_variable(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(environ={"SHARDENGINE_RING_BYTES": text})
    assert caught.value.source == "environment variable SHARDENGINE_RING_BYTES"
    assert caught.value.key == "ring_bytes"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.name))
def test_a_variable_that_is_empty_counts_as_not_set(field: msgspec.structs.FieldInfo) -> None:
    variable = ENV_PREFIX + field.name.upper()
    assert resolve_config(environ={variable: ""}) == resolve_config(environ={variable: " "}) == EngineConfig()


def test_a_variable_that_is_called_like_no_setting_is_named_once_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of.cache_clear()
    foreign = {"SHARDENGINE_PORT": "tcp://10.0.0.1:80", "SHARDENGINE_SERVICE_HOST": "", "SHARDENGINE_RINGBYTES": "1"}
    for _ in range(2):
        assert resolve_config(environ={**foreign, "SHARDENGINE_DATA": "/var/lib/x"}) == EngineConfig()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = "SHARDENGINE_PORT, SHARDENGINE_RINGBYTES (did you mean SHARDENGINE_RING_BYTES?)"
    assert record.getMessage() == f"no setting is called so, ignored: {said}"


def test_a_contradiction_between_sources_names_both(tmp_path: Path) -> None:
    path = write(tmp_path, "value_bytes_max = 1_000_000\n")
    with pytest.raises(ConfigError) as caught:
        resolve_config(path=path, environ={"SHARDENGINE_RING_BYTES": "65536"})
    text = str(caught.value)
    assert f"value_bytes_max from file {path}" in text
    assert "ring_bytes from environment variable SHARDENGINE_RING_BYTES" in text


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.name))
def test_every_setting_can_come_from_every_source(tmp_path: Path, field: msgspec.structs.FieldInfo) -> None:
    named = {"bad_entry": "reject", "interpreter": "python3"}
    value: Any = field.default if field.default is not None else named.get(field.name, 7)
    path = write(tmp_path, f"{field.name} = {msgspec.json.encode(value).decode()}")
    variable = ENV_PREFIX + field.name.upper()
    expected = EngineConfig(**{field.name: value})
    assert resolve_config(path=path, environ={}) == expected
    assert resolve_config(environ={variable: str(value)}) == expected
    assert resolve_config(environ={}, overrides={field.name: value}) == expected


def test_a_pipe_that_nobody_writes_to_is_refused_and_a_link_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no plain file"):
        resolve_config(path=tmp_path / "pipe", environ={})
    (tmp_path / "file").write_text("shards = 3\n")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert resolve_config(path=tmp_path / "link", environ={}).shards == 3
