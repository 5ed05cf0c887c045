"""The engine's defaults, and settings around each of them, under one load: whether they are right on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from perf.cells import Cell, Plan
from perf.documents import Document, document
from perf.facts import machine
from perf.rounds import Rounds
from perf.sweep import measure, row_of
from shardengine import EngineConfig
from shardengine.engine.run.resources import default_shards

WINDOWS = (1, 2, 4, 8, 16)
SHARES = (0.25, 0.5, 1, 2, 4)
"""Of the defaults of group and ring bytes: what is tried."""
WINDOW = 4
"""What the commands have in flight where nothing is said."""


def defaults() -> dict[str, int]:
    """Of each setting that is tried, whatever the environment says."""
    config = EngineConfig()
    return {"window": WINDOW, "group_bytes": config.group_bytes_max, "ring_bytes": config.ring_bytes}


def plan_of(entries: int, rounds: int, seed: int) -> Plan:
    """The load, under the defaults."""
    usual = {name: [value] for name, value in defaults().items()}
    return Plan(
        shards=[default_shards()],
        chunk=[5_000],
        value_bytes=[256],
        keys=["random"],
        command=["put"],
        durability=["process"],
        pin=["none"],
        entries=entries,
        rounds=rounds,
        seed=seed,
        **usual,
    )


def tried() -> dict[str, list[int]]:
    """The values of each setting, the default among them. Groups never hold more than a quarter of a ring."""
    sizes = {name: value for name, value in defaults().items() if name != "window"}
    return {"window": list(WINDOWS)} | {name: [int(value * share) for share in SHARES] for name, value in sizes.items()}


def around(usual: Cell, values: dict[str, Sequence[int]]) -> dict[str, list[Cell]]:
    """By setting: engines that differ from the usual one in that setting alone."""
    return {
        name: [msgspec.structs.replace(usual, **{name: value}) for value in several] for name, several in values.items()
    }


def measured(directory: Path, plan: Plan) -> Document:
    """All figures; the usual engine's stand in the rows of each setting. Raises CheckError when a final state is
    wrong."""
    (usual,) = plan.cells("engine")
    found = around(usual, dict(tried()))
    cells = list(dict.fromkeys(cell for several in found.values() for cell in several))
    rounds = Rounds(directory, cells, measure, plan.entries, plan.seed)
    rounds.run(plan.rounds)
    rows = [{"setting": name} | row_of(cell, rounds.found[cell]) for name, several in found.items() for cell in several]
    return document("defaults", machine(), plan.settings() | {"defaults": defaults()}, rows)
