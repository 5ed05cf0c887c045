"""Engine and adaptors are state machines as the contract has it: every method, with these arguments, waiting or not."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from shardengine import Engine, EngineStateError, EngineStoppedError, StateMachine, StoreError
from shardengine.adaptors import FileStateMachine, MemoryStateMachine, RocksDBStateMachine, SQLiteStateMachine
from tests.directories import puts
from tests.inside import runtime_of

ADAPTORS = (MemoryStateMachine, FileStateMachine, RocksDBStateMachine, SQLiteStateMachine)
METHODS = [name for name, value in vars(StateMachine).items() if inspect.isfunction(value) and value.__doc__]


def machine(path: Path) -> StateMachine:
    """For the type checker, too: an engine is one, whatever holds it."""
    return Engine(path, shards=2)


def in_memory() -> StateMachine:
    """For the type checker, too."""
    return MemoryStateMachine()


def test_every_method_of_the_contract_says_what_it_is_for() -> None:
    named = {name for name, value in vars(StateMachine).items() if inspect.isfunction(value)}
    assert named - set(METHODS) <= {"__init__", "__subclasshook__", "_no_init_or_replace_init"}
    assert len(METHODS) == 22


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("machine", [Engine, *ADAPTORS])
def test_it_has_the_method(machine: type[StateMachine], name: str) -> None:
    asked, found = getattr(StateMachine, name), getattr(machine, name)
    assert inspect.iscoroutinefunction(asked) is inspect.iscoroutinefunction(found)
    parameters = inspect.signature(found).parameters
    for parameter in inspect.signature(asked).parameters.values():
        assert parameters[parameter.name].kind is parameter.kind
        assert parameters[parameter.name].default == parameter.default
    assert found.__doc__ or name == "is_empty"


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_a_machine_in_memory_has_what_an_engine_has_but_for_what_it_says() -> None:
    lacking = public(Engine) - public(MemoryStateMachine)
    assert lacking == {"create_snapshot", "snapshots", "set_snapshot_policy", "stats"}
    assert all(f"`{name}`" in (MemoryStateMachine.__doc__ or "") for name in lacking)
    assert all(public(kind) == public(MemoryStateMachine) for kind in ADAPTORS)
    assert public(MemoryStateMachine) <= public(Engine)
    for name in sorted(public(MemoryStateMachine)):
        asked, found = getattr(Engine, name), getattr(MemoryStateMachine, name)
        assert inspect.iscoroutinefunction(asked) is inspect.iscoroutinefunction(found)
        assert inspect.signature(asked).parameters == inspect.signature(found).parameters


async def test_a_cleanup_removes_nothing_while_no_record_expires(tmp_path: Path) -> None:
    db = machine(tmp_path)
    with pytest.raises(EngineStateError):
        await db.lease_background_cleanup()
    db.start()
    await db.apply_chunk(puts(1, 10))
    assert await db.lease_background_cleanup() == []
    assert (len(db), db.get(b"k1")) == (10, b"v1")
    assert isinstance(db, Engine)
    runtime = runtime_of(db)
    assert runtime is not None
    runtime.fail(StoreError("the end"))
    for stopped in (False, True):
        with pytest.raises(EngineStoppedError if stopped else StoreError):
            await db.lease_background_cleanup()
        if not stopped:
            with pytest.raises(StoreError):
                db.stop()
