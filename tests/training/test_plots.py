"""The command that overlays the curves of runs: what it draws is what the runs' rows say."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lstm_jax.cli.main import run as run_a_command
from lstm_jax.training import plots

plot_command = partial(run_a_command, "plot")

installed = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is missing")
Points = dict[str, tuple[list[float], list[float]]]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs; in every other row of the first, held-out numbers are there too."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        rows = [
            {
                "step": step,
                "epoch": step / 4,
                "loss": 3 / (step + number),
                "accuracy": step / (10 + number),
                "heldout_loss": 4 / step if step % 2 == 0 and not number else None,
            }
            for step in range(1, 7)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folders


@installed
@pytest.mark.parametrize("losses", [(2, 1e25), (1e25, 1e30), (2, 800, 3)])
def test_a_run_that_diverged_has_curves(losses: tuple[float, ...], tmp_path: Path) -> None:
    rows = [
        {"step": step, "epoch": step, "loss": loss, "accuracy": 0.1, "perplexity": None}
        for step, loss in enumerate(losses)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    plots.draw_curves([tmp_path], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_backend_that_is_not_there_is_in_the_way_of_no_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "import os\nrcParams = {}\n"
        "if 'MPLBACKEND' in os.environ: raise ValueError('no valid value for backend')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://nowhere")
    plots._import_matplotlib()
    assert sys.modules.pop("matplotlib").rcParams == {"backend": "module://nowhere"}
    assert os.environ["MPLBACKEND"] == "module://nowhere"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Points]:
    """The lines of each panel that was saved, by their labels."""
    from matplotlib.figure import Figure

    panels: list[Points] = []
    save = Figure.savefig

    def note_and_save(figure: Any, *arguments: Any) -> None:
        for axes in figure.axes:
            panels.append(
                {
                    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
                    for line in axes.get_lines()
                }
            )
        save(figure, *arguments)

    monkeypatch.setattr(Figure, "savefig", note_and_save)
    return panels


def points(run: Path, name: str) -> tuple[list[float], list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    known = [row for row in rows if row.get(name) is not None]
    return [row["epoch"] for row in known], [row[name] for row in known]


@installed
def test_curves_of_several_runs_lie_over_each_other(
    runs: list[Path], drawn: list[Points], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "both.png"
    assert plot_command([*map(str, runs), "--output", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    first, second = runs
    loss, accuracy = drawn[:2]
    assert loss == {
        "first: training": points(first, "loss"),
        "first: held out": points(first, "heldout_loss"),
        "second: training": points(second, "loss"),
    }
    assert accuracy == {
        "first: training": points(first, "accuracy"),
        "second: training": points(second, "accuracy"),
    }


@installed
def test_one_run_needs_no_name(runs: list[Path], drawn: list[Points], tmp_path: Path) -> None:
    assert plot_command([str(runs[0]), "--output", str(tmp_path / "one.png")]) == 0
    assert set(drawn[0]) == {"training", "held out"}


@installed
def test_a_folder_that_is_no_run_is_refused_and_draws_nothing(
    runs: list[Path], tmp_path: Path
) -> None:
    picture = tmp_path / "none.png"
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "none does not exist"), ("empty", "empty has no metrics")):
        with pytest.raises(ValueError, match=message):
            plot_command([str(runs[0]), str(tmp_path / name), "--output", str(picture)])
    assert not picture.exists()
    with pytest.raises(ValueError, match=r"there is no folder .*; make it first"):
        plot_command([str(runs[0]), "--output", str(tmp_path / "no" / "a.png")])


def test_without_matplotlib_the_error_names_the_cure(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "have_matplotlib", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'lstm-jax\[plots\]'"):
        plot_command([str(runs[0])])
