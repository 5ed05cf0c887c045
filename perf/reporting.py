"""`python -m perf report`: everything worth knowing, as one page and the figures beside it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from perf import cells, defaults, latency, node, offered, predicting, reads, snapshot, stages, sweep
from perf.documents import FORMAT, MALFORMED, Document, DocumentError, document, from_older, parts_of
from perf.facts import machine, memory_bytes
from perf.load import Load
from perf.options import file_to_write, folder, folder_to_make
from perf.page import render, warnings
from perf.report import CheckError, RefusedError, write
from perf.sections import SECTIONS
from shardengine.engine.run.resources import default_shards
from shardengine.engine.storage.files import filesystem_of

EXAMPLES = """examples:
  python -m perf report --quick
  python -m perf report --out report --dir /var/tmp
  python -m perf report --only throughput,offered --out report
  python -m perf report --from report/report.json --plot throughput throughput.svg

Writes report.html and report.json. The quick form takes a few minutes on two quiet cores; nothing else should run
meanwhile. With --from nothing is measured: the page and the plots are drawn from what was.

Exit code 1: an answer was wrong; there is no report then.
"""
_SEED = 1
_STAGES = "stages.json"  # what the model of a report is made of


class Size(msgspec.Struct, frozen=True):
    """How much is measured."""

    shards: list[int]
    entries: int
    rounds: int
    seconds: float
    keys: int
    threads: list[int]
    gets: int
    batches: int
    callers: list[int]
    proposals: int
    snapshot_entries: int
    default_entries: int
    default_rounds: int
    check: bool


def _shard_counts() -> list[int]:
    """Powers of two up to twice the usable cores, and the counts next to those."""
    cores = len(os.sched_getaffinity(0))
    powers = [1 << power for power in range(8) if 1 << power <= 2 * cores]
    return sorted({1, 2, 3, cores, default_shards(), *powers})


def size_of(form: str) -> Size:
    """How much a report of that form measures; `tiny` is for whether it runs at all."""
    cores = len(os.sched_getaffinity(0))
    quick = Size(
        shards=sorted({1, 2, 3, max(3, cores), default_shards()}),
        entries=100_000,
        rounds=4,
        seconds=0.5,
        keys=50_000,
        threads=[1, 4],
        gets=1_000,
        batches=50,
        callers=[1, 16, 256],
        proposals=5_000,
        snapshot_entries=10_000,
        default_entries=60_000,
        default_rounds=4,
        check=False,
    )
    return {"full": _full(quick), "quick": quick, "tiny": _tiny(quick)}[form]


def _full(quick: Size) -> Size:
    more = {"entries": 400_000, "rounds": 7, "seconds": 3.0, "keys": 200_000, "gets": 2_000, "batches": 100}
    many = {"shards": _shard_counts(), "proposals": 100_000, "snapshot_entries": 50_000}
    around = {"default_entries": 200_000, "default_rounds": 5}
    return msgspec.structs.replace(quick, check=True, **more, **many, **around)


def _tiny(quick: Size) -> Size:
    less = {"entries": 1_000, "rounds": 1, "seconds": 0.02, "keys": 500, "gets": 50, "batches": 2}
    few = {"shards": [1, 2], "threads": [4], "callers": [1], "proposals": 20, "snapshot_entries": 500}
    around = {"default_entries": 500, "default_rounds": 1}
    return msgspec.structs.replace(quick, **less, **few, **around)


# ---- the parts -------------------------------------------------------------------------------------------------------


def _axes(size: Size, shards: list[int]) -> cells.Plan:
    return cells.Plan(
        shards, [5_000], [4], [256], ["random"], ["put"], ["process"], ["none"], size.entries, size.rounds, _SEED
    )


def _throughput(directory: Path, size: Size) -> Document:
    found = sweep.measured(directory, _axes(size, size.shards))
    return found | {"settings": found["settings"] | {"default_shards": default_shards()}}


def _defaults(directory: Path, size: Size) -> Document:
    return defaults.measured(directory, defaults.plan_of(size.default_entries, size.default_rounds, _SEED))


def _stages(directory: Path, size: Size) -> Document:
    found = stages.measured(directory, _axes(size, list(predicting.COUNTED)))
    (directory.parent / _STAGES).write_text(json.dumps(found))
    return found


def _model(directory: Path, size: Size) -> Document:
    """From the stages of this report, if there are any."""
    known, cores = directory.parent / _STAGES, len(os.sched_getaffinity(0))
    asked = predicting.Asked([cores], size.shards, None, known if known.exists() else None, check=size.check)
    return predicting.measured(directory, _axes(size, [1]), asked)


def _offered(directory: Path, size: Size) -> Document:
    plan = offered.Plan([10, 25, 50, 75, 90], size.seconds, size.keys, 256, 5_000, 2, 4, size.rounds, _SEED)
    return document("offered", machine(), msgspec.to_builtins(plan), offered.measured(directory, plan))


def _latency(directory: Path, size: Size) -> Document:
    return from_older(latency.measured(directory, shards=2, value_bytes=256, rounds=5 * size.rounds, busy_processes=0))


def _peers(directory: Path, size: Size) -> Document:
    from perf.besides import Plan, measured

    plan = Plan([2], size.entries // 2, 256, 5_000, 4, size.rounds, _SEED)
    return from_older(measured(directory, plan))


def _snapshot(directory: Path, size: Size) -> Document:
    load = Load(size.snapshot_entries, 256, 1_000, _SEED)
    rounds = max(1, size.rounds // 2)
    return from_older(snapshot.measured(directory, load, shards=2, into=3, rounds=rounds, window=4))


def _reads(directory: Path, size: Size) -> Document:
    plan = reads.Plan([1, 2], size.threads, size.keys, 256, size.gets, size.batches, _SEED)
    return from_older(reads.measured(directory, plan))


def _node(directory: Path, size: Size) -> Document:
    plan = node.Plan(size.callers, size.proposals, size.seconds, 256, 2, size.rounds, _SEED)
    return from_older(node.measured(directory, plan))


PARTS: dict[str, Callable[[Path, Size], Document]] = {
    "throughput": _throughput,
    "defaults": _defaults,
    "offered": _offered,
    "latency": _latency,
    "peers": _peers,
    "stages": _stages,
    "model": _model,
    "snapshot": _snapshot,
    "reads": _reads,
    "node": _node,
}


# ---- the command -----------------------------------------------------------------------------------------------------


def add_report(command: argparse.ArgumentParser) -> None:
    form = command.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_const", const="quick", dest="form", help="few rounds, small states")
    form.add_argument("--tiny", action="store_const", const="tiny", dest="form", help="does it run at all?")
    command.add_argument("--only", type=_names, help="these parts, with commas in between (default: all)")
    command.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: draw this report")
    command.add_argument(
        "--plot", nargs=2, metavar=("PART", "FILE"), action="append", default=[], help="also write its plot, as SVG"
    )
    command.add_argument(
        "--out", type=folder_to_make, default=Path("perf-report"), help="where to (default: %(default)s)"
    )
    command.add_argument("--dir", type=folder, help="where the temporary data goes")
    command.set_defaults(form="full")


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(PARTS)}")
    return names


def run_report(args: argparse.Namespace) -> int:
    """Measure, check, write the page, the figures and the plots. Returns the exit code."""
    try:
        plots = [(name, file_to_write(file)) for name, file in args.plot]
    except argparse.ArgumentTypeError as error:
        print(f"--plot: {error}", file=sys.stderr)
        return 2
    if args.only and args.source:
        print("--only says what is measured, and --from measures nothing", file=sys.stderr)
        return 2
    asked = args.only or list(PARTS)
    try:
        report = None if args.source is None else _read(args.source)
        known = asked if report is None else list(report["parts"])
        if absent := [name for name, _ in plots if name not in known]:
            print(f"no plot of {', '.join(absent)}: the report has {', '.join(known)}", file=sys.stderr)
            return 2
        report = report or measured(args.form, asked, args.dir)
    except CheckError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    except (DocumentError, RefusedError) as error:
        print(error, file=sys.stderr)
        return 2
    return _write(report, args.out, plots)


def _read(path: Path) -> Document:
    """What was measured before. Raises DocumentError unless a page can be made of it."""
    report, _ = parts_of(path)
    if "parts" not in report:
        raise DocumentError(f"this is no report, but what `python -m perf {report['command']}` found")
    try:
        render(report)
    except MALFORMED as error:
        raise DocumentError(f"{path}: a part lacks what its section needs: {error!r}") from error
    return report


def measured(form: str, names: list[str], parent: Path | None) -> Document:
    """A report of these parts. Raises CheckError when an answer is wrong."""
    logging.getLogger("shardengine").setLevel(logging.ERROR)
    parts: dict[str, Document] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="shardengine-perf-", dir=parent) as name:
        facts, size = {**_facts(Path(name)), "form": form}, size_of(form)
        for command in names:
            _say(f"{command} …")
            place, began = Path(name) / command, time.monotonic()
            place.mkdir()
            try:
                parts[command] = PARTS[command](place, size)
            except ModuleNotFoundError as error:
                missing[command] = f"it needs {error.name}"
            _say(f"{command}: {time.monotonic() - began:.0f} s")
    return {"format": FORMAT, "command": "report", "facts": facts, "parts": parts, "missing": missing}


def _facts(directory: Path) -> dict[str, Any]:
    return {
        **machine(),
        "memory_bytes": memory_bytes(),
        "filesystem": filesystem_of(directory.resolve()),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _write(report: Document, folder: Path, plots: list[tuple[str, Path]]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write(folder / "report.html", render(report))
    for name, file in plots:
        if name in report["parts"]:
            file.write_text(SECTIONS[name].drawn(report["parts"][name]))
        else:
            print(f"no plot of {name}: {report['missing'].get(name)}", file=sys.stderr)
    for name, section in SECTIONS.items():
        if name in report["parts"]:
            print(f"{section.title}: {section.says(report['parts'][name])}")
    for text in warnings(report["facts"]):
        print(f"\n{text}")
    print(f"\nchecked: every part's state; written: {folder / 'report.html'} and report.json beside it")
    return 0


def _say(text: str) -> None:
    print(f"report: {text}", file=sys.stderr, flush=True)
