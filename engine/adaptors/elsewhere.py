"""A run of a log in another process, where sets have another order, the clock and the time zone are others."""

from __future__ import annotations

import os
import subprocess
import time

import msgspec

from shardengine.engine.adaptors.clocks import move_clocks
from shardengine.engine.adaptors.tracing import Step, Trace, Tracer
from shardengine.engine.errors import EngineError, RehearsalError
from shardengine.engine.intake.chunks import error_of
from shardengine.engine.run.launch import launch_of
from shardengine.engine.storage.placing import made
from shardengine.shards import wire
from shardengine.shards.running import problem_of
from shardengine.shards.types import Limits
from shardengine.shards.worker import Process, import_machine

_PROGRAM = "from shardengine.engine.adaptors.elsewhere import main; main(given.read())"
_ERROR_CHARS = 4000


class Task(msgspec.Struct, frozen=True):
    """What to run, of which machine, `module:qualname`."""

    machine: str
    limits: Limits
    steps: list[Step]


class Answer(msgspec.Struct, frozen=True):
    """What each command did, by index, or why none of them ran."""

    traces: dict[int, Trace]
    problem: wire.Problem | None = None


def traced_elsewhere(task: Task, hash_seed: int, timeout_s: float) -> dict[int, Trace]:
    """Run the log in log order in a new process. Blocks, for `timeout_s` at most.

    Raises MachineImportError when it cannot import or make the machine; RehearsalError when it ends otherwise, or does
    not end: it is killed then. ConfigError, OSError: it cannot be started.
    """
    launch = launch_of(None)
    try:
        done = subprocess.run(
            launch.child(_PROGRAM),
            input=launch.told(msgspec.msgpack.encode(task)),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "TZ": _other_zone()},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RehearsalError(
            f"the run in another process has not ended after {timeout_s} s",
            hint="rehearse fewer commands, raise timeout_s, or see whether apply comes to an end there",
            timeout_s=timeout_s,
        ) from error
    return _answer(done)


def _answer(done: subprocess.CompletedProcess[bytes]) -> dict[int, Trace]:
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-_ERROR_CHARS:]
        raise RehearsalError(
            f"the process that ran the log once more ended with code {done.returncode}: {said.strip()}",
            hint="apply does nothing but read and write tx",
            code=done.returncode,
        )
    answer = msgspec.msgpack.decode(done.stdout, type=Answer)
    if answer.problem is not None:
        raise error_of(answer.problem, None)
    return answer.traces


def _other_zone() -> str:
    """A time zone where it is another day than here: far in the west, or in the east."""
    today = time.localtime().tm_yday
    west = time.gmtime(time.time() - 12 * 3600).tm_yday
    return "AAA12" if west != today else "AAA-14"


# ---- there -----------------------------------------------------------------------------------------------------------


def main(task: bytes) -> None:
    """Be that process: an answer to the task goes to standard output, and nothing else does."""
    Process.is_worker = True
    output = os.dup(1)
    os.dup2(2, 1)
    move_clocks()
    answer = msgspec.msgpack.encode(_run(msgspec.msgpack.decode(task, type=Task)))
    with open(output, "wb") as file:
        file.write(answer)


def _run(task: Task) -> Answer:
    try:
        machine = import_machine(task.machine)
        tracer = Tracer(lambda: made(machine), task.limits)
    except EngineError as error:
        return Answer({}, problem_of(error))
    return Answer(tracer.by_shards(task.steps, len(task.steps)))
