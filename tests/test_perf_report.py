"""The report, what is compared, what is recorded: each sentence is what the figures say, and a page needs nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from perf import noise, offered, smoke
from perf.__main__ import main
from perf.bars import Bar, bars
from perf.documents import Document, document, is_figure, subject
from perf.lines import Line, Point, lines
from perf.page import render
from perf.reporting import PARTS
from perf.rows import ROWS_OF, Row, figure
from perf.sections import SECTIONS
from shardengine import Engine
from shardengine.engine.storage.files import filesystem_of

SVG = "http://www.w3.org/2000/svg"
FACTS = {"cores": 2, "cpu": "a processor", "puts": "compiled", "load_average": 0.1}
ROUNDS = (0.98, 0.99, 1.0, 1.01, 1.02)


def around(name: str, value: float, rounds: Sequence[float] = ROUNDS) -> Row:
    return figure(name, [value * one for one in rounds])


def throughput(*rates: tuple[str, int, float], rounds: Sequence[float] = ROUNDS) -> Document:
    load = {"value_bytes": 256, "keys": "random", "chunk": 5000}
    rows = [
        {"side": side, "shards": shards, **load, **around("entries_per_s", rate, rounds)}
        for side, shards, rate in rates
    ]
    return document("sweep", FACTS, {"entries": 1000, "value_bytes": [256], "chunk": [5000]}, rows)


USUAL = throughput(("engine", 1, 100_000), ("engine", 2, 160_000), ("py-lmdb", 1, 80_000), ("limit", 2, 200_000))


def open_loop(*loads: tuple[int, float]) -> Document:
    """Percent of the maximum of 1,000 entries/s, and how much of that was done."""
    rows: list[Row] = []
    for percent, done in loads:
        row = {"shards": 2, "schedule": "open", "offered_percent": percent, "offered_per_s": 10.0 * percent}
        row |= around("achieved_per_s", 10.0 * percent * done)
        for name, us in (("p50_us", 100), ("p99_us", 900), ("p999_us", 5_000)):
            row |= around(name, us * percent)
        rows.append(row)
    rows.append({"shards": 2, "schedule": "all due at once", **around("achieved_per_s", 1_000)})
    return document("offered", FACTS, {"value_bytes": 256, "chunk": 5000}, rows)


def staged(shards: int) -> list[Row]:
    rows = [{"shards": shards, "process": "engine", "stage": "all", **around("entries_per_s", 1)}]
    for process, stages in (
        ("coordinator", {"split": 300.0, "waits for a vote": 700.0}),
        ("workers", {"put": 500.0, "sort": 100.0, "waits for a part": 300.0, "waits for COMMIT": 100.0}),
    ):
        rows.append({"shards": shards, "process": process, "stage": "all", **around("wall_ns_per_entry", 1_000)})
        rows += (
            {"shards": shards, "process": process, "stage": stage, **around("wall_ns_per_entry", ns)}
            for stage, ns in stages.items()
        )
    return rows


def made_up() -> dict[str, Document]:
    """A document for every part."""
    trips = [
        {"machine": "as it is", "spin_us": spin, "round_trip": name, "round_trip_us": us}
        for spin in (500, 0)
        for name, us in (("pipe", 10.0), ("one shard", 25.0), ("two shards", 75.0))
    ]
    sides = (
        ("engine, 2 shards", "engine", 300),
        ("FileStateMachine", "state machine", 100),
        ("RocksDB", "store alone", 400),
    )
    peers = [
        {"side": side, "group": group, **around("entries_per_s", rate), "over_engine": rate / 300}
        for side, group, rate in sides
    ]
    snapshot = [
        {"what": "pause", "of": stream, "records": records, **around("pause_ms", ms)}
        for stream, records, ms in (("near", 10, 1.0), ("near", 160, 1.0), ("spread", 10, 1.0), ("spread", 160, 3.0))
    ]
    for what, of, name, rate in (
        ("copy", "engine", "mb_per_s", 80),
        ("copy", "bare", "mb_per_s", 100),
        ("apply", "alone", "entries_per_s", 100),
        ("apply", "meanwhile", "entries_per_s", 60),
        ("restore", "2 shards", "mb_per_s", 50),
    ):
        snapshot.append({"what": what, "of": of, **around(name, rate)})
    reads = [
        {"shards": 1, "read": read, "threads": threads, **around("get_ns", ns), **around("txn_get_ns", 500)}
        | {"over_txn_get": ns / 500}
        for read, threads, ns in (("Engine.get", 1, 750), ("SyncEngine.get", 4, 1_500))
    ]
    node = [
        {"callers": callers, "side": side, **around("proposals_per_s", rate), "p50_us": 1.0}
        for callers, side, rate in (("1", "node", 50), ("1", "SQLite", 25), ("16", "node", 400), ("16", "SQLite", 30))
    ]
    return {
        "throughput": USUAL,
        "offered": open_loop((10, 1), (90, 1)),
        "latency": document("latency", FACTS, {}, trips),
        "peers": document("peers", FACTS, {"entries": 10}, peers),
        "stages": document("stages", FACTS, {"entries": 10}, staged(1) + staged(2)),
        "snapshot": document("snapshot", FACTS, {}, snapshot),
        "reads": document("reads", FACTS, {}, reads),
        "node": document("node", FACTS, {}, node),
    }


def report_of(parts: dict[str, Document], **facts: Any) -> Document:
    return {"format": 1, "command": "report", "facts": {**FACTS, **facts}, "parts": parts, "missing": {}}


class Looked(HTMLParser):
    """What is in a page: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def plots_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_a_page_has_a_sentence_a_plot_and_a_table_of_every_part() -> None:
    parts = made_up()
    assert list(parts) == [name for name in SECTIONS if name in parts] and set(parts) == set(PARTS) == set(SECTIONS)
    page = render(report_of(parts))
    looked = Looked(page)
    for name, section in SECTIONS.items():
        assert section.title in looked.text and section.says(parts[name]) in looked.text
    assert len(plots_of(page)) == len(parts) and looked.tags.count("table") == len(parts) + 1
    assert "100,000 (98,000 to 102,000)" in looked.text


def test_a_page_needs_nothing_from_outside_and_no_script() -> None:
    page = render(report_of(made_up()))
    looked = Looked(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(looked.tags)
    assert {name for name, _ in looked.attributes} >= {"viewBox".lower(), "class"}
    assert all(value and value.startswith("#") for name, value in looked.attributes if name in ("href", "src"))
    assert "://" not in page.replace(SVG, "") and "url(" not in page and "@import" not in page
    for wanted in ("prefers-color-scheme: dark", "@media print", "width=device-width", "overflow-x: auto"):
        assert wanted in page


def test_a_part_that_is_not_there_is_named_with_the_reason() -> None:
    report = report_of({"throughput": USUAL}) | {"missing": {"peers": "it needs rocksdict"}}
    looked = Looked(render(report))
    assert "Beside others\nNot measured: it needs rocksdict." in looked.text
    assert "Reads\nNot measured: it was not asked for." in looked.text
    assert "Not measured" not in Looked(render(report_of(made_up()))).text


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "Measured was the compiled implementation."),
        ({"puts": "python"}, "Measured was the Python twin"),
        ({"load_average": 7.0}, "The machine was busy: when the measurement began, 7.00 processes wanted its 2 cores."),
        ({"load_average": None}, "Whether the machine was quiet is not known."),
        ({"form": "tiny"}, "no figure of it says anything"),
    ],
)
def test_what_a_reader_has_to_know_first_is_said_first(facts: dict[str, Any], said: str) -> None:
    text = Looked(render(report_of({}, **facts))).text
    assert said in text and ("was busy" in text) == ("load_average" in facts and facts["load_average"] is not None)


HOSTILE = "</td></svg><script>alert(1)</script><img src='http://outside/'> & \"it\""


def test_text_in_documents_is_text_on_the_page() -> None:
    parts = made_up()
    for part in parts.values():
        part["facts"] = {**FACTS, "cpu": HOSTILE}
        for row in part["rows"]:
            row[HOSTILE] = HOSTILE
    for key, name in (("side", "peers"), ("read", "reads"), ("side", "node"), ("machine", "latency")):
        parts[name]["rows"][-1][key] = HOSTILE
    page = render(report_of(parts, **{HOSTILE: HOSTILE}) | {"missing": {"other": HOSTILE}})
    looked, usual = Looked(page), Looked(render(report_of(made_up())))
    assert set(looked.tags) == set(usual.tags) and looked.text.count("<script>alert(1)") > 20
    assert {name for name, _ in looked.attributes} == {name for name, _ in usual.attributes}
    assert len(plots_of(page)) == len(parts)


# ---- the sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            USUAL,
            "2 shards apply 1.60 times what one does; the most is 160,000 entries/s with 2 shards, 2.00 times what "
            "py-lmdb does in one process and 80% of the limit.",
        ),
        (
            throughput(("engine", 1, 100_000), ("engine", 2, 70_000)),
            "2 shards apply 0.70 times what one does; the most is 100,000 entries/s with 1 shard, and py-lmdb was not "
            "measured and the limit was not measured.",
        ),
        (
            throughput(("engine", 1, 100), ("engine", 2, 100.5)),
            "1.00 times what one does (a difference within the noise)",
        ),
        (
            throughput(("engine", 1, 100), ("engine", 2, 150), rounds=(0.9, 1.0, 1.1)),
            "1.50 times what one does (too few rounds to tell that from noise)",
        ),
        (throughput(("engine", 4, 100)), "100 entries/s with 4 shards, and no other count was measured,"),
    ],
)
def test_the_sentence_on_throughput_is_what_the_figures_say(document: Document, said: str) -> None:
    assert said in SECTIONS["throughput"].says(document)


def test_several_loads_are_told_apart() -> None:
    both = throughput(("engine", 1, 100), ("engine", 2, 150))
    both["rows"] += [{**row, "keys": "ordered"} for row in throughput(("engine", 1, 100), ("engine", 2, 50))["rows"]]
    said = SECTIONS["throughput"].says(both)
    assert (
        "With keys random: 2 shards apply 1.50 times" in said and "With keys ordered: 2 shards apply 0.50 times" in said
    )
    (plot,) = plots_of(SECTIONS["throughput"].drawn(both))
    assert len(list(plot.iter(f"{{{SVG}}}polyline"))) == 2


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([(10, 1), (90, 0.99)], "All offered loads were kept up with."),
        ([(10, 1), (50, 0.8), (75, 1), (90, 0.8)], "From 90 % on the engine falls behind"),
        ([(10, 1), (50, 0.8), (90, 0.5)], "From 50 % on the engine falls behind"),
        ([(90, 1)], "It was kept up with."),
    ],
)
def test_the_sentence_on_offered_load_says_from_where_on_the_engine_falls_behind(
    loads: list[tuple[int, float]], said: str
) -> None:
    told = SECTIONS["offered"].says(open_loop(*loads))
    assert said in told and "no coordinated omission" in told
    assert (
        "At 10 % of the measured maximum (100 entries/s) half of the entries take up to 1.00 ms" in told
        or len(loads) == 1
    )


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "latency",
            "takes 25.0 us, 2.50 times a bare pipe's round trip; two entries on two shards take 75.0 us, 3.00 times",
        ),
        ("peers", "3.00 times what the fastest state machine does (FileStateMachine)"),
        ("peers", "0.75 times what the fastest store alone does (RocksDB, which is faster)"),
        (
            "stages",
            "the coordinator spends 30% of its time on split, more than on any other work, and waits for 70% of it",
        ),
        (
            "stages",
            "a worker spends 50% of its time on put, more than on any other work, and waits for 40% of it (75% of",
        ),
        (
            "snapshot",
            "near keys a barrier pauses for 1.00 ms with 160 records, 1.00 times what it takes with 10 (a diff",
        ),
        ("snapshot", "spread keys a barrier pauses for 3.00 ms with 160 records, 3.00 times what it takes with 10."),
        (
            "snapshot",
            "A copy is 0.80 times as fast as a bare one. While snapshots are taken one after the other, 60% of",
        ),
        ("reads", "Engine.get, 1 shard, 1 thread: 750 ns, 1.50 times py-lmdb's own; the slowest is SyncEngine.get"),
        ("node", "One caller gets 50.0 proposals/s, 2.00 times SQLite; the most is 400 proposals/s, with 16 callers."),
    ],
)
def test_every_other_sentence_is_what_the_figures_say(part: str, said: str) -> None:
    assert said in SECTIONS[part].says(made_up()[part])


# ---- plots -----------------------------------------------------------------------------------------------------------


def test_a_line_plot_holds_whatever_text_and_figures_it_is_given() -> None:
    series = [
        Line(HOSTILE, [Point(1, 5, 1, 9), Point(64, 1e7, 1e6, 1e8)]),
        Line("a name as long as this one is has to be cut somewhere, or it would leave the plot", [Point(8, 0, 0, 0)]),
    ]
    for log in (False, True):
        drawn = lines(HOSTILE, HOSTILE * 3, (HOSTILE, HOSTILE), series, log=log)
        plot = ElementTree.fromstring(drawn)
        inside(plot)
        assert len(list(plot.iter(f"{{{SVG}}}circle"))) == 3
    assert ElementTree.fromstring(lines("none", "", ("x", "y"), [])).tag == f"{{{SVG}}}svg"


def inside(plot: ElementTree.Element) -> None:
    """Nothing of a plot is outside of it."""
    _, _, width, height = map(float, plot.attrib["viewBox"].split())
    for name, edge in (("x", width), ("cx", width), ("x2", width), ("y", height), ("cy", height), ("y2", height)):
        found = [float(one.attrib[name]) for one in plot.iter() if name in one.attrib]
        assert all(0 <= value <= edge for value in found), (name, found)


def test_nothing_of_any_plot_is_outside_of_it() -> None:
    for name, part in made_up().items():
        (plot,) = plots_of(SECTIONS[name].drawn(part))
        inside(plot)


def test_a_logarithmic_bar_is_as_long_as_its_figure_has_digits() -> None:
    plot = ElementTree.fromstring(
        bars("", "", [], [Bar("a", 10, ""), Bar("b", 100, ""), Bar("c", 1000, ""), Bar("none", 0, "")], log=True)
    )
    long = [float(one.attrib["width"]) for one in plot.iter(f"{{{SVG}}}rect")][1:]
    assert long[0] < long[1] < long[2] and long[2] == pytest.approx(2 * long[1]) and long[3] == 1


# ---- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], 2 / 20),
        ([1, 2, 3, 4], [5, 6, 7, 8], 2 / 70),
        ([1, 4], [2, 3], 1.0),
        ([1, 1, 1], [1, 1, 1], 1.0),
        ([1, 1, 2], [2, 3, 3], 4 / 20),
    ],
)
def test_the_rank_test_is_what_counting_all_orders_gives(
    first: list[float], second: list[float], expected: float
) -> None:
    assert noise.chance(first, second) == pytest.approx(noise.chance(second, first)) == pytest.approx(expected)


def test_of_many_rounds_the_normal_distribution_says_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [1, 3, 4, 6, 7, 9, 10, 12], [5, 8, 11, 13, 14, 15, 16, 17]
    exact = noise.chance(first, second)
    monkeypatch.setattr(noise, "_EXACT", 0)
    assert noise.chance(first, second) == pytest.approx(exact, abs=0.005)
    assert noise.chance([1] * 20, [1] * 20) == 1.0


def test_three_rounds_each_tell_nothing_and_four_may() -> None:
    assert not noise.tells([1, 2, 3], [4, 5, 6]) and noise.tells([1, 2, 3, 4], [5, 6, 7, 8])
    assert not noise.tells([], [1]) and not noise.differ([1, 2, 3], [4, 5, 6])


# ---- documents -------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_told_from_what_was_found() -> None:
    row = {"shards": 2, "value_bytes": 256, "spin_us": 0, "offered_percent": 10, "keys": "random", "pin": None}
    found = {
        "p99_us": 7,
        "over_engine": 0.5,
        "entries_per_s": 1,
        "entries_per_s_samples": [1],
        "count": 3,
        "count_samples": [3],
    }
    assert dict(subject({**row, **found})) == row
    assert all(is_figure(name, found) for name in found)


def test_latency_counts_from_the_intended_time_whatever_held_an_entry_up() -> None:
    late = list(offered._latencies_ns([(0, 2, 0.5), (2, 4, 0.6)], per_s=10))
    assert late == pytest.approx([0.5e9, 0.4e9, 0.4e9, 0.3e9], abs=2)


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def helper() -> Iterator[None]:
    """multiprocessing keeps a process of its own until the interpreter ends: end it with the test."""
    yield
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()


@pytest.mark.usefixtures("helper")
def test_report_writes_a_page_and_the_figures_and_draws_both_again_from_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "perf.besides", None)
    plot = ["--plot", "throughput", str(tmp_path / "plot.svg")]
    asked = ["report", "--tiny", "--only", "throughput,offered,latency,peers"]
    assert main([*asked, "--out", str(tmp_path / "one"), "--dir", str(tmp_path), *plot]) == 0
    told = capsys.readouterr()
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["format"] == 1 and list(report["parts"]) == ["throughput", "offered", "latency"]
    assert list(report["missing"]) == ["peers"] and report["facts"]["filesystem"] == filesystem_of(tmp_path)
    page = (tmp_path / "one" / "report.html").read_text()
    for name, part in report["parts"].items():
        assert f"{SECTIONS[name].title}: {SECTIONS[name].says(part)}" in told.out
        assert SECTIONS[name].drawn(part) in page and f"report: {name} …" in told.err
    assert (tmp_path / "plot.svg").read_text() in page
    assert {path.name for path in tmp_path.iterdir()} == {"one", "plot.svg"}
    assert main(["report", "--from", str(tmp_path / "one" / "report.json"), "--out", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "report.html").read_text() == page


def test_a_plot_of_what_was_not_measured_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_of({"throughput": USUAL})))
    source = ["report", "--from", str(tmp_path / "report.json"), "--out", str(tmp_path / "out")]
    assert main([*source, "--plot", "reads", str(tmp_path / "plot.svg")]) == 2
    assert "no plot of reads: the report has throughput" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_engine_that_loses_an_entry_gives_no_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = Engine.digest

    async def wrong(db: Engine) -> bytes:
        return (await digest(db))[::-1]

    monkeypatch.setattr(Engine, "digest", wrong)
    asked = ["report", "--tiny", "--only", "offered", "--out", str(tmp_path / "out"), "--dir", str(tmp_path)]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert "check failed: offered load: digest " in told.err and told.out == "" and list(tmp_path.iterdir()) == []


def written(directory: Path, name: str, document: Document) -> str:
    (directory / name).write_text(json.dumps(document))
    return str(directory / name)


def compared(directory: Path, capsys: pytest.CaptureFixture[str], *rates: float, **more: Any) -> tuple[int, list[str]]:
    """Two documents of one engine each, with these rates; the exit code with 10 percent allowed, and what is said."""
    files = [
        written(directory, str(number), report_of({"throughput": throughput(("engine", 2, rate), **more)}))
        for number, rate in enumerate(rates)
    ]
    code = main(["compare", *files, "--fail-on-slower", "10"])
    return code, capsys.readouterr().out.splitlines()


def test_compare_tells_what_changed_beyond_the_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = compared(tmp_path, capsys, 100, 150)
    assert code == 0 and said[0] == "same machine, same versions"
    assert re.match(
        r"throughput +100 +150 +1\.50 x  faster +entries/s: side engine, shards 2, value_bytes 256,", said[3]
    )
    assert "1 figures: 1 faster and 0 slower beyond the noise" in said[-1]
    code, said = compared(tmp_path, capsys, 100, 80)
    assert code == 1 and " 0.80 x  slower " in said[3]
    code, said = compared(tmp_path, capsys, 100, 95)
    assert code == 0 and " 0.95 x  slower " in said[3], "slower, but by less than ten percent"
    code, said = compared(tmp_path, capsys, 100, 100.5)
    assert code == 0 and " 1.00 x  noise " in said[3]
    code, said = compared(tmp_path, capsys, 100, 50, rounds=(0.9, 1.0, 1.1))
    assert code == 0 and " too few rounds " in said[3]


def test_a_time_that_grew_is_slower_and_without_being_asked_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        written(tmp_path, str(us), document("x", FACTS, {}, [{"of": "it", **around("p99_us", us)}]))
        for us in (100, 200)
    ]
    assert main(["compare", *files]) == 0
    assert " 0.50 x  slower " in capsys.readouterr().out


def test_other_machines_and_what_only_one_of_two_has_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report_of({"throughput": USUAL})
    other = report_of({"throughput": throughput(("engine", 4, 100))}, cores=16, puts="python", lmdb="4")
    assert main(["compare", written(tmp_path, "one", one), written(tmp_path, "other", other)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "DIFFERENT machines or implementations: cores 2 / 16; lmdb None / 4; puts compiled / python"
    assert (
        "only in the first: 4 of 4 rows of throughput" in said
        and "only in the second: 1 of 1 rows of throughput" in said
    )
    assert main(["compare", written(tmp_path, "one", one), written(tmp_path, "new", report_of({}, lmdb="4"))]) == 0
    assert capsys.readouterr().out.startswith("same machine, other versions: lmdb None / 4\n")


@pytest.mark.parametrize("held", ["no JSON", "[]", "{}", '{"format": 99, "command": "x"}'])
def test_a_file_without_figures_is_refused_by_name(
    held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it").write_text(held)
    assert main(["compare", str(tmp_path / "it"), str(tmp_path / "it")]) == 2
    told = capsys.readouterr()
    assert str(tmp_path / "it") in told.err and told.out == ""
    assert main(["report", "--from", str(tmp_path / "it"), "--out", str(tmp_path / "out")]) == 2


def test_what_a_command_wrote_by_itself_can_be_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["reads", "--keys", "100", "--gets", "20", "--rounds", "4", "--shards", "1", "--threads", "1"]
    assert main([*asked, "--json", str(tmp_path / "it")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "it"), str(tmp_path / "it")]) == 0
    said = capsys.readouterr().out
    assert "8 figures: 0 faster and 0 slower" in said and said.count(" 1.00 x  noise ") == 8
    assert "reads" in ROWS_OF


@pytest.mark.usefixtures("helper")
def test_smoke_compares_with_what_it_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smoke, "PLAN", smoke.Plan(entries=500, chunk=100, rounds=1))
    asked = ["smoke", "--recorded", str(tmp_path / "recorded.json"), "--dir", str(tmp_path), "--tolerance", "100000"]
    assert main(asked) == 2
    assert "`python -m perf smoke --record`" in capsys.readouterr().err
    assert main([*asked, "--record"]) == 0
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert told.count("as recorded") == 3 and "not worse than recorded by more than 100000 %" in told
    assert [path.name for path in tmp_path.iterdir()] == ["recorded.json"]


def test_smoke_fails_on_a_ratio_that_is_worse_and_on_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"engine_over_py_lmdb": 1.0, "two_shards_over_one": 1.0, "one_entry_over_pipe": 4.0}

    def bad(**ratios: float) -> int:
        found = known | ratios
        facts = {"machine": FACTS, "ratios": found, "rounds": {name: [ratio] for name, ratio in found.items()}}
        return smoke.show(facts, known, tolerance=25)

    assert bad() == 0 and bad(two_shards_over_one=0.85) == 0 and bad(one_entry_over_pipe=4.9) == 0
    capsys.readouterr()
    assert bad(engine_over_py_lmdb=0.7) == 1 and bad(one_entry_over_pipe=5.1) == 1
    assert capsys.readouterr().out.count("WORSE") == 2
    assert bad(engine_over_py_lmdb=2.0, one_entry_over_pipe=1.0) == 0
    assert capsys.readouterr().out.count("better: record it?") == 2


def test_other_kinds_of_machines_keep_what_is_recorded_for_them(tmp_path: Path) -> None:
    for cores in (2, 16):
        smoke.record({"machine": {**FACTS, "cores": cores}, "ratios": {}}, tmp_path / "it")
    assert list(smoke.recorded_in(tmp_path / "it")) == ["2 cores, compiled", "16 cores, compiled"]
