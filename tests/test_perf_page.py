"""A report's page: each sentence is what the figures say, nothing of a plot is cut, and it needs nothing."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from perf.bars import Bar, bars
from perf.documents import Document, document
from perf.lines import Line, Point, lines
from perf.page import render
from perf.reporting import PARTS
from perf.sections import SECTIONS
from perf.svg import width_of
from tests.figures import (
    AROUND,
    FACTS,
    SVG,
    USUAL,
    Looked,
    around,
    defaults,
    made_up,
    open_loop,
    plots_of,
    report_of,
    staged,
    throughput,
)

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
    assert "In all rows: value bytes 256, keys random, chunk 5000." in looked.text


def test_the_table_of_stages_is_of_the_shard_count_that_is_told_of() -> None:
    rows = SECTIONS["stages"].rows(document("stages", FACTS, {}, staged(1) + staged(2) + staged(4)))
    assert [row["stage"] for row in rows] == [
        *("split", "waits for a vote", "all"),
        *("put", "sort", "waits for a part", "waits for COMMIT", "all"),
    ]


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


@pytest.mark.parametrize(
    ("default", "said"),
    [
        (2, "The default shard count, 2, is the fastest of 3."),
        (3, "The default shard count, 3, is within 5 % of the fastest (2)."),
        (1, "The default shard count, 1, is not the fastest: 2 would be 60 % faster here."),
    ],
)
def test_the_sentence_on_throughput_says_whether_the_default_count_is_right(default: int, said: str) -> None:
    found = throughput(("engine", 1, 100), ("engine", 2, 160), ("engine", 3, 153))
    assert "default" not in SECTIONS["throughput"].says(found)
    for known, ends in ((default, True), (9, False)):
        settings = {**found["settings"], "default_shards": known}
        assert SECTIONS["throughput"].says({**found, "settings": settings}).endswith(said) is ends


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            AROUND,
            "The default window, 4, is within 3 % of the fastest (8). The default group_bytes_max, 4 MiB, is the "
            "fastest of 2. The default ring_bytes, 32 MiB, is not the fastest: 8 MiB would be 12 % faster here.",
        ),
        (
            defaults(window={4: 100, 8: 104}),
            "The default window, 4, is not the fastest: 8 would be 4 % faster here.",
        ),
        (defaults(window={4: 100, 8: 102.9}), "The default window, 4, is within 3 % of the fastest (8)."),
    ],
)
def test_the_sentences_on_defaults_are_what_the_figures_say(document: Document, said: str) -> None:
    assert SECTIONS["defaults"].says(document) == said


def test_every_setting_has_a_line_over_its_default() -> None:
    (plot,) = plots_of(SECTIONS["defaults"].drawn(AROUND))
    assert len(list(plot.iter(f"{{{SVG}}}polyline"))) == 3
    places = {one.text for one in plot.iter(f"{{{SVG}}}text")}
    assert {"0.25", "0.5", "1", "2"} <= places and "ring_bytes, 32 MiB" in places


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
            "model",
            "On 2 cores 120 entries/s with 2 shards, and the bottleneck is cores; on 64 cores 500 entries/s with 9",
        ),
        ("model", "predictions, and nobody has measured hosts that are larger. Of 1 that were measured here, too, the"),
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


def test_what_was_checked_in_rounds_that_do_not_agree_is_told_apart() -> None:
    document = made_up()["model"]
    (steady,) = [row for row in document["rows"] if row["kind"] == "check"]
    torn = {**steady, "error_percent": 60.0, **around("entries_per_s", 100, (0.5, 1.0, 1.0))}
    said = SECTIONS["model"].says({**document, "rows": [*document["rows"], torn]})
    assert "Of 2 that were measured here, too, the largest error is 60 %; of the 1 whose rounds" in said
    assert said.endswith("are 25% apart or less, 20 %.")
    said = SECTIONS["model"].says({**document, "rows": [torn if row is steady else row for row in document["rows"]]})
    assert said.endswith("the largest error is 60 %.")


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
    for text in plot.iter(f"{{{SVG}}}text"):
        long, kinds = width_of(text.text or ""), text.attrib["class"].split()
        begins = float(text.attrib["x"]) - (long if "end" in kinds else long / 2 if "middle" in kinds else 0)
        assert begins >= 0 and begins + long <= width, text.text


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
