"""The command that overlays the curves of runs: what it draws is what the runs' rows say."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lstm_jax.cli.main import run as run_a_command
from lstm_jax.training import plots
from lstm_jax.training.log import read_rows

plot_command = partial(run_a_command, "plot")
Points = dict[str, list[list[float]]]


def write(run: Path, rows: list[dict[str, Any]]) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs; in every other row of the first, held-out numbers are there too."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        rows = [
            {"step": step, "epoch": step / 4, "loss": 3 / (step + number), "accuracy": step / 10}
            for step in range(1, 7)
        ]
        heldout = {"heldout_loss": 4 / 6} if number == 0 else {}
        write(folder, [row | heldout if row["step"] % 2 == 0 else row for row in rows])
    return folders


@pytest.mark.parametrize("losses", [(2, 1e25), (1e25, 1e30), (2, 800, 3), (1.0, [], None)])
def test_curves_of_diverged_or_odd_numbers_are_drawn(
    losses: tuple[Any, ...], tmp_path: Path
) -> None:
    write(tmp_path, [{"step": at, "epoch": at, "loss": loss} for at, loss in enumerate(losses)])
    write(tmp_path / "odd", [{"step": 1}, {"step": 2, "epoch": "x", "loss": 3}])
    plots.draw_curves([tmp_path, tmp_path / "odd"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_backend_is_in_the_way_of_no_curves(runs: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lstm_jax", "plot", runs[0], "--output", tmp_path / "a.png"]
    subprocess.run(command, env=os.environ | {"MPLBACKEND": "nowhere"}, check=True)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Points]:
    """The lines of each panel that was saved, by their labels."""
    from matplotlib.figure import Figure

    panels: list[Points] = []
    save = Figure.savefig

    def note_and_save(figure: Any, *arguments: Any) -> None:
        for axes in figure.axes:
            lines = axes.get_lines()
            panels.append({line.get_label(): line.get_xydata().tolist() for line in lines})
        save(figure, *arguments)

    monkeypatch.setattr(Figure, "savefig", note_and_save)
    return panels


def points(run: Path, name: str) -> list[list[float]]:
    return [[row["epoch"], row[name]] for row in read_rows(run / "metrics.jsonl") if name in row]


def test_curves_of_several_runs_lie_over_each_other_and_one_run_needs_no_name(
    runs: list[Path], drawn: list[Points], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "both.png"
    assert plot_command([*map(str, runs), "--output", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    first, second = runs
    loss, accuracy = drawn[:2]
    both = {"first: training": first, "second: training": second}
    assert accuracy == {label: points(run, "accuracy") for label, run in both.items()}
    heldout = {"first: held out": points(first, "heldout_loss")}
    assert loss == {label: points(run, "loss") for label, run in both.items()} | heldout
    drawn.clear()
    assert plot_command([str(first), "--output", str(tmp_path / "one.png")]) == 0
    assert set(drawn[0]) == {"training", "held out"}


def test_a_folder_that_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, picture, message in (
        ("none", "a.png", "none does not exist"),
        ("empty", "a.png", "empty has no metrics"),
        ("second", "no/a.png", r"there is no folder .*; make it first"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_command([*map(str, (runs[0], tmp_path / name, "--output", tmp_path / picture))])
    assert not (tmp_path / "a.png").exists()


def test_no_matplotlib_has_a_cure(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "have_matplotlib", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'lstm-jax\[plots\]'"):
        plot_command([str(runs[0])])
