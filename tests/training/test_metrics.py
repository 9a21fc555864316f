"""`metrics.jsonl`: whole rows, each once, whatever happened to the run before."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.training.metrics import MetricsLog, perplexity, read_rows


def write(path: Path, steps: list[int], last_step: int) -> None:
    log = MetricsLog(path, last_step)
    for step in steps:
        log.append({"step": step, "loss": step / 7})
    log.close()


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [10, 20, 30], 0)
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": step, "loss": step / 7} for step in (10, 20, 30)
    ]


@given(cut=st.integers(0, 90), resume=st.integers(0, 5))
def test_a_cut_and_resumed_log_has_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int, resume: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    write(path, [10, 20, 30, 40, 50], 0)
    whole = path.read_text()
    path.write_text(whole[: len(whole) - cut])
    left = [row["step"] for row in read_rows(path)]
    last = min(10 * resume, left[-1] if left else 0)
    write(path, [step for step in (10, 20, 30, 40, 50) if step > last], last)
    assert path.read_text() == whole


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1, "loss": math.nan, "perplexity": math.inf, "seconds": 1.5})
    log.close()
    line = path.read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "perplexity": None, "seconds": 1.5}


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(math.log(83)) == pytest.approx(83)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
