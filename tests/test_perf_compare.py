"""What is compared, and what is recorded: changes beyond the noise, and ratios that became worse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from perf import noise, smoke
from perf.__main__ import main
from perf.documents import Document, document, from_older, is_figure, sampled, subject
from perf.rows import ROWS_OF, Row
from tests.figures import FACTS, USUAL, around, helper_ends, report_of, throughput

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


def test_files_from_before_there_were_sizes_are_of_the_default_ones() -> None:
    row = {"side": "engine", "shards": 2}
    assert subject({**row, "group_bytes": 0, "ring_bytes": 0}) == subject(row)
    assert subject({**row, "group_bytes": 1 << 20, "ring_bytes": 0}) != subject(row)


# ---- the commands ----------------------------------------------------------------------------------------------------


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
    assert code == 0 and " too few rounds " in said[3] and "; about 0 would" in said[-1]


def test_a_time_that_grew_is_slower_other_figures_are_more_and_without_being_asked_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        written(
            tmp_path,
            str(us),
            document("x", FACTS, {}, [{"of": "it", **around("p99_us", us), **around("cores_busy", us)}]),
        )
        for us in (100, 200)
    ]
    assert main(["compare", *files]) == 0
    said = capsys.readouterr().out
    assert " 2.00 x  slower          p99, us: " in said and " 2.00 x  more            cores busy: " in said
    assert main(["compare", *files, "--fail-on-slower", "49"]) == 1
    assert main(["compare", *files, "--fail-on-slower", "51"]) == 0


def test_other_machines_and_what_only_one_of_two_has_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report_of({"throughput": USUAL})
    other = report_of({"throughput": throughput(("engine", 4, 100))}, cores=16, puts="python", lmdb="4")
    assert main(["compare", written(tmp_path, "one", one), written(tmp_path, "other", other)]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "DIFFERENT machines or implementations: cores 2 / 16; lmdb None / 4; puts compiled / python"
    assert (
        "only in the first: 4 of 4 rows of throughput" in said
        and "only in the second: 1 of 1 rows of throughput" in said
    )
    assert main(["compare", written(tmp_path, "one", one), written(tmp_path, "new", report_of({}, lmdb="4"))]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("same machine, other versions: lmdb None / 4\n") and "no figure in common" in told.err


_DOCUMENT = '{"format": 1, "command": "x", "facts": {}, "settings": {}, "rows": [%s]}'


@pytest.mark.parametrize(
    "held",
    [
        "no JSON",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": 99, "command": "x"}',
        '{"format": 1}',
        '{"format": 1, "facts": {}, "parts": []}',
        '{"apply": 1}',
        _DOCUMENT % '{"of": ["a list"]}',
        _DOCUMENT % '{"p99_us": 1, "p99_us_samples": []}',
        _DOCUMENT % '{"p99_us": 1, "p99_us_samples": ["1"]}',
    ],
)
def test_a_file_without_figures_is_refused_by_name(
    held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it").write_text(held)
    assert main(["compare", str(tmp_path / "it"), str(tmp_path / "it")]) == 2
    told = capsys.readouterr()
    assert str(tmp_path / "it") in told.err and told.out == ""
    assert main(["report", "--from", str(tmp_path / "it"), "--out", str(tmp_path / "out")]) == 2


def test_a_report_whose_part_lacks_what_its_section_needs_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    it = written(tmp_path, "it", report_of({"reads": document("reads", FACTS, {}, [])}))
    assert main(["report", "--from", it, "--out", str(tmp_path / "out")]) == 2
    assert f"{it}: a part lacks what its section needs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_a_command_wrote_by_itself_can_be_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["reads", "--keys", "100", "--gets", "20", "--rounds", "4", "--shards", "1", "--threads", "1"]
    assert main([*asked, "--json", str(tmp_path / "it")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "it"), str(tmp_path / "it")]) == 0
    said = capsys.readouterr().out
    assert "8 figures: 0 faster and 0 slower" in said and said.count(" 1.00 x  noise ") == 8
    assert "reads" in ROWS_OF


@pytest.mark.parametrize(
    ("command", "row", "subjects"),
    [
        ("transactions", {"skew": 0.99, "spanning_percent": 10.0, "shards": 2, "seconds": [1, 2, 4]}, 1),
        ("machines", {"machine": "bank", "seconds": {"engine": [1, 2, 4], "memory": [1, 2, 4]}}, 2),
        (
            "cluster",
            {"callers": 4, "side": "it", "rates": [1, 2, 4], "p50_us": 1.0, "p99_us": 2.0, "over_bare": 0.5},
            1,
        ),
    ],
)
def test_what_was_measured_and_the_rounds_are_found_in_what_commands_write(
    command: str, row: Row, subjects: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"machine": FACTS, "plan": {"entries": 8}, command: [row]}
    found = from_older(facts)
    assert found["command"] == command and len({subject(one) for one in found["rows"]}) == subjects
    rates = [values for one in found["rows"] for values in sampled(one).values()]
    assert all(sorted(values) in ([1, 2, 4], [2, 4, 8]) for values in rates) and len(rates) == subjects
    assert main(["compare", *[written(tmp_path, "it", facts)] * 2]) == 0
    assert f"{subjects} figures: 0 faster" in capsys.readouterr().out


@helper_ends()
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
