"""The engine is a state machine as the contract has it: every method, with these arguments, waiting or not."""

from __future__ import annotations

import inspect

import pytest

from shardengine import Engine, StateMachine

METHODS = [name for name, value in vars(StateMachine).items() if inspect.isfunction(value) and value.__doc__]


def as_typed(engine: Engine) -> StateMachine:
    """For the type checker."""
    return engine


def test_every_method_of_the_contract_says_what_it_is_for() -> None:
    named = {name for name, value in vars(StateMachine).items() if inspect.isfunction(value)}
    assert named - set(METHODS) <= {"__init__", "__subclasshook__", "_no_init_or_replace_init"}
    assert len(METHODS) == 22


@pytest.mark.parametrize("name", METHODS)
def test_the_engine_has_the_method(name: str) -> None:
    asked, found = getattr(StateMachine, name), getattr(Engine, name)
    assert inspect.iscoroutinefunction(asked) is inspect.iscoroutinefunction(found)
    parameters = inspect.signature(found).parameters
    for parameter in inspect.signature(asked).parameters.values():
        assert parameters[parameter.name].kind is parameter.kind
        assert parameters[parameter.name].default == parameter.default
    assert found.__doc__ or name == "is_empty"
