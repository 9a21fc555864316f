"""`python -m bench` itself: what it names, what it refuses, and the rows that are kept."""

import json
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench import endurance, layer, memory, plot, rate, sample, scaling, shapes, train
from bench.__main__ import BENCHES, main
from bench.report import read_rows

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "bench" / "results").glob("*.jsonl"))


def test_help_names_all_benches_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 25
    assert max(map(len, lines)) <= 80
    for name in BENCHES:
        assert any(line.startswith(f"  {name} ") for line in lines)
        assert callable(import_module(f"bench.{name}").main)
    with pytest.raises(ValueError, match=r"no bench 'speed'; choose from train, layer, sample"):
        main(["speed"])


def test_documents_name_benches_and_results_that_are_there() -> None:
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for file in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"))
    )
    named = set(re.findall(r"python\s-m\sbench\s([a-z]+)", text))
    assert named == set(BENCHES)
    for file in re.findall(r"bench/results/[\w.-]+\w", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_stored_results_are_rows_that_tell_what_they_ran_on(file: Path, tmp_path: Path) -> None:
    bench = file.stem.partition("-")[0]
    if bench == "endurance":
        training, sampling = map(json.loads, file.read_text().splitlines())
        assert (training["system"], sampling["system"]) == ("training", "sampling")
        assert len(training["points"]) > 300
        assert training["device"] and training["versions"] and training["date"]
        return
    rows = read_rows(file)
    assert {row.bench for row in rows} == {bench} <= set(BENCHES)
    assert all(row.device and row.versions and row.date and row.threads for row in rows)
    if bench == "rate":
        with pytest.raises(ValueError, match="rows of rate are not drawn"):
            plot.draw(rows, tmp_path / "rows.png")
        return
    assert main(["plot", str(file), "--output", str(tmp_path / "rows.png")]) == 0
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    for text in ("[]\n", '{"bench": "train"}\n', "torn"):
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"rows.jsonl is not what a bench wrote with --json"):
            main(["plot", str(tmp_path / "rows.jsonl")])


def mosaic(hidden_size: int) -> layer.Options:
    flags: Any = {"cells": ("lstm",), "backends": ("auto", "mosaic"), "dtype": "bfloat16"}
    return layer.Options(shapes=(f"7,3,5,{hidden_size}",), **flags)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: train.Options(rounds=0), "rounds is 0"),
        (lambda: train.Options(peers=("numpy",)), "there is no peer 'numpy'; choose from pytorch"),
        (lambda: layer.Options(shapes=("1,2,3",)), "a shape is '1,2,3'; expected four sizes"),
        (lambda: layer.Options(shapes=()), "there is nothing to measure"),
        (lambda: layer.Options(backends=("parallel",)), "the units of lstm depend on each other"),
        *(
            (partial(mosaic, size), f"backend 'mosaic' (needs jax|{why})")
            for size, why in ((8, "takes multiples of 64"), (64, "needs a GPU"))
        ),
        (lambda: sample.Options(places=0), "places is 0"),
        (lambda: sample.Options(batch_sizes=()), "batch_sizes are"),
        (lambda: sample.Options(batch_sizes=(4, 0)), "batch_sizes are"),
        (lambda: sample.Options(peers=("keras",)), "there is no peer 'keras'; choose from pytor"),
        (lambda: memory.Options(steps=1), "steps is 1"),
        (lambda: rate.Options(steps=1), "steps is 1; it must be at least 2"),
        (lambda: main(["plot"]), "there is nothing to draw"),
        (lambda: plot.draw([], Path("x.png")), "rows of no bench are not drawn"),
        (lambda: shapes.system_named("novel"), "there is no system 'novel'"),
        (lambda: shapes.system_named("reviews", writes=True), "no system that writes 'reviews'"),
        (lambda: endurance.Options(minutes=0), "minutes is 0"),
        (lambda: scaling.Options(processes=999), "each takes a core, so choose 2 to"),
    ],
)
def test_options_that_make_no_sense_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options()
