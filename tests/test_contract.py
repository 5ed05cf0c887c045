"""Engine and adaptors are state machines as the contract has it: every method, with these arguments, waiting or not."""

from __future__ import annotations

import inspect

import pytest

from shardengine import Engine, StateMachine
from shardengine.adaptors import MemoryStateMachine

METHODS = [name for name, value in vars(StateMachine).items() if inspect.isfunction(value) and value.__doc__]


def as_typed(engine: Engine | MemoryStateMachine) -> StateMachine:
    """For the type checker."""
    return engine


def test_every_method_of_the_contract_says_what_it_is_for() -> None:
    named = {name for name, value in vars(StateMachine).items() if inspect.isfunction(value)}
    assert named - set(METHODS) <= {"__init__", "__subclasshook__", "_no_init_or_replace_init"}
    assert len(METHODS) == 19


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("machine", [Engine, MemoryStateMachine])
def test_it_has_the_method(machine: type[StateMachine], name: str) -> None:
    asked, found = getattr(StateMachine, name), getattr(machine, name)
    assert inspect.iscoroutinefunction(asked) is inspect.iscoroutinefunction(found)
    parameters = inspect.signature(found).parameters
    for parameter in inspect.signature(asked).parameters.values():
        assert parameters[parameter.name].kind is parameter.kind
        assert parameters[parameter.name].default == parameter.default
    assert found.__doc__ or name == "is_empty"
