"""The table of faults, its place in a document, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.faults.__main__ import hostile_line, main
from bench.faults.figure import draw_runs
from bench.faults.lines import BEGIN, END, Line, failures, replaced, table


def test_a_line_counts_what_was_not_as_promised() -> None:
    line = Line("a fault", 1200, ("in save: lost",), "seen")
    assert line.held == 1199
    assert table([line]).splitlines()[-1] == "| a fault | 1,200 | 1,199 | seen |"
    assert failures([line]) == ["a fault: in save: lost"]


def test_only_the_part_between_the_markers_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = replaced(document, "new")
    assert new == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert replaced(new, "new") == new


@pytest.mark.parametrize("document", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_document_without_both_markers_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        replaced(document, "new")


def test_the_project_s_own_page_has_them() -> None:
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    assert replaced(page.read_text(encoding="utf-8"), "new")


def test_counts_of_hostile_inputs_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    found = {"case": "7", "detail": "KeyError"}
    tallies = [
        {"surface": "a", "cases": 10, "refused": 8, "accepted": 1, "findings": [found]},
        {"surface": "b", "cases": 5, "refused": 0, "accepted": 5, "findings": []},
    ]
    for content in (tallies, {"surfaces": tallies}):
        file.write_text(json.dumps(content))
        line = hostile_line(file)
        assert (line.tried, line.held, line.failures) == (15, 14, ("a, case 7",))
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"not what bench\.fuzz"):
        hostile_line(file)


@pytest.mark.parametrize("flag", ["--kills", "--flips", "--kills-a-run"])
def test_nothing_to_try_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        main([flag, "0"])


def test_curves_are_drawn_only_of_runs_that_can_be_compared(tmp_path: Path) -> None:
    runs = {}
    for name, steps in (("one", 3), ("other", 3), ("short", 2)):
        runs[name] = tmp_path / name
        runs[name].mkdir()
        rows = [json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, steps + 1)]
        (runs[name] / "metrics.jsonl").write_text("".join(rows))
    draw_runs({name: runs[name] for name in ("one", "other")}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="not the same rows"):
        draw_runs(runs, tmp_path / "b.png")
