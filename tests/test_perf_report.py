"""`python -m perf report`: what it measures, and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from perf import offered
from perf.__main__ import main
from perf.defaults import WINDOW
from perf.sections import SECTIONS
from shardengine import Engine
from shardengine.engine.storage.files import filesystem_of
from tests.figures import USUAL, helper_ends, report_of
from tests.killing import DEEP


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What even the tiny form tries several times, or in several ways, is tried as often as a figure takes."""
    if not DEEP:
        monkeypatch.setattr("perf.sized.PAUSES", 1)
        monkeypatch.setattr("perf.snapshot.COPIES", 1)
        monkeypatch.setattr("perf.defaults.WINDOWS", (1, WINDOW))
        monkeypatch.setattr("perf.defaults.SHARES", (0.5, 1))


def test_latency_counts_from_the_intended_time_whatever_held_an_entry_up() -> None:
    late = list(offered._latencies_ns([(0, 2, 0.5), (2, 4, 0.6)], per_s=10))
    assert late == pytest.approx([0.5e9, 0.4e9, 0.4e9, 0.3e9], abs=2)


@helper_ends()
def test_report_writes_a_page_and_the_figures_and_draws_both_again_from_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("perf.besides", "perf.bare"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    plot = ["--plot", "throughput", str(tmp_path / "plot.svg")]
    asked = ["report", "--tiny", "--only", "throughput,offered,latency,peers"]
    assert main([*asked, "--out", str(tmp_path / "one"), "--dir", str(tmp_path), *plot]) == 0
    told = capsys.readouterr()
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["format"] == 1 and list(report["parts"]) == ["throughput", "offered", "latency"]
    assert report["missing"] == {"peers": "it needs rocksdict"} and report["facts"]["filesystem"] == filesystem_of(
        tmp_path
    )
    assert len(report["parts"]["latency"]["rows"]) == 6, "three round trips, with polling and without"
    page = (tmp_path / "one" / "report.html").read_text()
    for name, part in report["parts"].items():
        assert f"{SECTIONS[name].title}: {SECTIONS[name].says(part)}" in told.out
        assert SECTIONS[name].drawn(part) in page and f"report: {name} …" in told.err
    assert (tmp_path / "plot.svg").read_text() in page
    assert {path.name for path in tmp_path.iterdir()} == {"one", "plot.svg"}
    again = ["report", "--from", str(tmp_path / "one" / "report.json"), "--out", str(tmp_path / "two")]
    assert main([*again, "--only", "latency"]) == 2 and not (tmp_path / "two").exists()
    assert main(again) == 0
    assert (tmp_path / "two" / "report.html").read_text() == page


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("parts", ["defaults", "stages,model", "peers,snapshot", "reads,node"])
@helper_ends()
def test_every_other_part_is_measured_and_told_of(
    parts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--tiny", "--only", parts, "--out", str(tmp_path / "out"), "--dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["parts"]) == parts.split(",") and report["missing"] == {}
    told, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for name, part in report["parts"].items():
        assert SECTIONS[name].says(part) in told and SECTIONS[name].drawn(part) in page
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_plot_of_what_was_not_measured_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_of({"throughput": USUAL})))
    source = ["report", "--from", str(tmp_path / "report.json"), "--out", str(tmp_path / "out")]
    assert main([*source, "--plot", "reads", str(tmp_path / "plot.svg")]) == 2
    assert "no plot of reads: the report has throughput" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["apply", "--entries", "300", "--chunk", "100", "--latency-rounds", "1", "--time-ms"], "engine / limit  "),
        (["latency", "--busy", "1"], "beside 1 busy processes"),
        (["snapshot", "--entries", "200", "--chunk", "50"], "restore, 2 to 3 shards  "),
        (["memory", "--entries", "500", "--chunk", "100"], "bounded"),
    ],
)
@helper_ends()
def test_what_has_no_test_of_its_own_runs_and_can_be_compared(
    asked: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = [] if asked[0] == "memory" else ["--rounds", "1"]
    assert main([*asked, *rounds, "--json", str(tmp_path / "it"), "--dir", str(tmp_path)]) == 0
    assert said in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "it"), str(tmp_path / "it")]) == (
        2 if asked[0] in ("memory", "latency") else 0
    )
    assert "only in" not in capsys.readouterr().out


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
