"""SIGKILL of the coordinator and all its workers, and what the next start makes of the files, without re-delivery.

Every round: open, compare with the model, go on feeding, die. All rounds of a test share one directory. The workers of
every fourth are started, those of the others forked (`workers_forked`).
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.kill_child import Acknowledged, Opened, Orders
from tests.killing import DEEP, WATCHDOG_S, Judge, Prey, seeded, workers_forked

STARTS_KILLED = 0.15
START_S = {False: 0.3, True: 0.06}  # about how long one takes, of workers that are started, and that are forked
SPINS_MAX = 30_000


def spin(rng: random.Random) -> None:
    """Let a random, small number of microseconds pass."""
    for _ in range(rng.randrange(SPINS_MAX)):
        pass


def stream_orders(judge: Judge, rng: random.Random, name: str, number: int, **more: object) -> Orders:
    window, largest = rng.choice([(1, 8), (1, 64), (3, 16), (6, 64), (8, 200)])
    return judge.orders(
        "stream", sizes_seed=name, window=window, largest=largest, forked=workers_forked(number), **more
    )


@pytest.mark.parametrize(
    ("shards", "rounds"), [(3, 40), (2, 40), (2, 41), (2, 42), (2, 43)] if DEEP else [(3, 30), (2, 30), (2, 31)]
)
def test_after_a_kill_of_everything_at_a_random_moment_the_state_is_the_models_at_a_chunks_end(
    tmp_path: Path, shards: int, rounds: int
) -> None:
    rng = seeded()
    seed = rng.randrange(1, 1 << 30)
    judge = Judge(tmp_path / "data", shards, seed)
    for number in range(rounds):
        orders = stream_orders(judge, rng, f"{seed}/{number}", number)
        with judge.prey(orders) as prey:
            if number and rng.random() < STARTS_KILLED:
                until = time.monotonic() + rng.random() * START_S[orders.forked]
                judge.judge(list(prey.frames(until)), orders)
            else:
                judge.check(prey.opened(), orders)
                for index in prey.acknowledged(rng.choice([0, 1, rng.randrange(30)])):
                    judge.acknowledged = index
                spin(rng)
            prey.kill_everything()
            judge.judge(prey.rest(), orders)
            assert prey.process.wait(WATCHDOG_S) == -signal.SIGKILL, prey.errors()
        judge.crashed()
    judge.finish()
    assert judge.model.index > rounds


def test_when_the_coordinator_alone_is_killed_its_workers_end_by_themselves(tmp_path: Path) -> None:
    rng = seeded()
    seed = rng.randrange(1, 1 << 30)
    judge = Judge(tmp_path / "data", 2, seed)
    for number in range(15):
        orders = stream_orders(judge, rng, f"{seed}/{number}", number)
        with judge.prey(orders) as prey:
            judge.check(prey.opened(), orders)
            for index in prey.acknowledged(rng.randrange(10)):
                judge.acknowledged = index
            spin(rng)
            prey.process.kill()
            judge.judge(prey.rest(), orders)
            prey.wait_for_workers()
        judge.crashed()
    judge.finish()


def test_when_all_workers_are_killed_at_once_the_coordinator_goes_on(tmp_path: Path) -> None:
    rng = seeded()
    seed = rng.randrange(1, 1 << 30)
    judge = Judge(tmp_path / "data", 3, seed)
    for number in range(10):
        orders = stream_orders(judge, rng, f"{seed}/{number}", number)
        with judge.prey(orders) as prey:
            opened = prey.opened()
            judge.check(opened, orders)
            spin(rng)
            for worker in prey.workers:
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            prey.wait_for_workers()
            last = acknowledged_beyond(prey, opened, orders)
            prey.kill_everything()
            judge.acknowledged = last
            judge.judge(prey.rest(), orders)
        judge.crashed()
    judge.finish()


def acknowledged_beyond(prey: Prey, opened: Opened, orders: Orders) -> int:
    """Wait for more acknowledgements than the pipe and the window can have held when the workers died."""
    last = opened.index
    for index in prey.acknowledged(40):
        last = index
    assert prey.process.poll() is None, prey.errors()
    return last


def test_a_stop_that_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rng = seeded()
    judge = Judge(tmp_path / "data", 2, 0)
    for number in range(10):
        orders = judge.orders("script", forked=workers_forked(number))
        with judge.prey(orders) as prey:
            judge.check(prey.opened(), orders)
            frames = prey.frames()
            for frame in frames:
                assert isinstance(frame, Acknowledged), frame
                judge.acknowledged = frame.index
                if frame.index % 100 == 99 and frame.index > judge.model.index + 50:
                    break
            prey.wait_for_a_word(rng.random() * 0.02)
            if rng.random() < 0.5:
                prey.kill_everything()
            else:
                os.kill(prey.process.pid, signal.SIGKILL)
            judge.judge(prey.rest(), orders)
            prey.wait_for_workers()
        judge.crashed()
    judge.finish()
