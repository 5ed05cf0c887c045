"""`python -m perf compare A.json B.json`: what changed beyond the noise between two documents, or two reports."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from perf.documents import MALFORMED, Document, DocumentError, parts_of, sampled, subject
from perf.noise import BEYOND, differ, tells
from perf.options import tolerated
from perf.rows import Row
from perf.svg import told
from perf.telling import heading

EXAMPLES = """examples:
  python -m perf compare before.json after.json
  python -m perf compare before/report.json after/report.json --fail-on-slower 10

Each figure with the values of single rounds is compared: the ratio of the medians, and whether a rank test puts the
difference beyond the noise (5 %). Four rounds each are the fewest that can tell.

Exit code 0, whatever changed; 1 with --fail-on-slower, when a figure is slower by more, and beyond the noise; 2: a file
holds no figures, or the two have none in common.
"""
_TIMES = ("_us", "_ms", "_ns")
_MACHINE = ("cores", "cpu", "puts")
"""Facts without which figures cannot be compared at all."""


class Change(msgspec.Struct, frozen=True):
    """One figure in both. The verdict is "faster" or "slower" of rates and times, "more" or "less" of all else."""

    part: str
    of: str
    figure: str
    before: float
    after: float
    verdict: str

    @property
    def faster(self) -> float:
        """So many times as fast as before, if it is a rate or a time."""
        return self.after / self.before if _is_rate(self.figure) else self.before / self.after


def _is_rate(figure: str) -> bool:
    return figure.endswith("_per_s")


def changes(before: Mapping[str, Document], after: Mapping[str, Document]) -> Iterator[Change]:
    """Of all figures that are in both, with single rounds."""
    for part, document in before.items():
        found = {subject(row): row for row in after.get(part, {}).get("rows", [])}
        for row in document["rows"]:
            if (other := found.get(subject(row))) is not None:
                yield from _changes(part, row, other)


def _changes(part: str, row: Row, other: Row) -> Iterator[Change]:
    later = sampled(other)
    for figure, values in sampled(row).items():
        if figure not in later:
            continue
        before, after = median(values), median(later[figure])
        if before <= 0 or after <= 0:
            continue
        verdict = "too few rounds"
        if tells(values, later[figure]):
            verdict = _direction(figure, after > before) if differ(values, later[figure]) else "noise"
        yield Change(part, _named(row), figure, before, after, verdict)


def _direction(figure: str, more: bool) -> str:
    if _is_rate(figure):
        return "faster" if more else "slower"
    if figure.endswith(_TIMES):
        return "slower" if more else "faster"
    return "more" if more else "less"


def _named(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if (key, value) in subject(row))


def unmatched(before: Mapping[str, Document], after: Mapping[str, Document]) -> Iterator[str]:
    """What one of the two says nothing about."""
    for where, some, others in (("the first", before, after), ("the second", after, before)):
        for part, document in some.items():
            known = {subject(row) for row in others.get(part, {}).get("rows", [])}
            count = sum(subject(row) not in known for row in document["rows"])
            if count:
                yield f"only in {where}: {count} of {len(document['rows'])} rows of {part}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first line: whether machines and implementations are the same."""
    same = {*before, *after} - {"date", "load_average"}
    differing = [
        f"{name} {before.get(name)} / {after.get(name)}" for name in sorted(same) if _differs(name, before, after)
    ]
    loud = any(_differs(name, before, after) for name in _MACHINE)
    if loud:
        return f"DIFFERENT machines or implementations: {'; '.join(differing)}"
    return f"same machine, other versions: {'; '.join(differing)}" if differing else "same machine, same versions"


def _differs(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return bool(before.get(name) != after.get(name))


def add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path, help="what a command, or `report`, wrote")
    command.add_argument("after", type=Path, help="the same, later or elsewhere")
    command.add_argument(
        "--fail-on-slower", type=tolerated, metavar="PERCENT", help="exit 1 when a figure is slower by more"
    )


def run_compare(args: argparse.Namespace) -> int:
    """Read, compare and print. Returns the exit code."""
    try:
        (before, first), (after, second) = parts_of(args.before), parts_of(args.after)
    except DocumentError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        found, alone = list(changes(first, second)), list(unmatched(first, second))
    except MALFORMED as error:
        print(f"{args.before} or {args.after} has other rows than its command writes: {error!r}", file=sys.stderr)
        return 2
    print(f"{differences(before['facts'], after['facts'])}\n")
    show(found)
    for line in alone:
        print(line)
    if not found:
        print("the two have no figure in common that has values of single rounds", file=sys.stderr)
        return 2
    return 1 if args.fail_on_slower is not None and any(_fails(one, args.fail_on_slower) for one in found) else 0


def _fails(change: Change, percent: float) -> bool:
    return change.verdict == "slower" and change.faster < 1 - percent / 100


_ROW = "{:<12}{:>12}{:>12}{:>9}  {:<16}{}"


def show(found: list[Change]) -> None:
    """The longest column comes last."""
    print(_ROW.format("part", "before", "after", "ratio", "", "figure"))
    for one in found:
        figures = told(one.before), told(one.after), f"{one.after / one.before:.2f} x"
        print(_ROW.format(one.part, *figures, one.verdict, f"{heading(one.figure)}: {one.of}"))
    counts = Counter(one.verdict for one in found)
    chance = (len(found) - counts["too few rounds"]) * BEYOND
    print(
        f"\n{len(found)} figures: {counts['faster']} faster and {counts['slower']} slower beyond the noise; about",
        end=" ",
    )
    print(f"{told(chance)} would seem so by chance")
