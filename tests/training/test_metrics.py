"""`metrics.jsonl`: whole rows, each once, whatever happened to the run before."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def log_of(path: Path, steps: list[int]) -> dict[str, Any]:
    """Writes rows, and gives what a checkpoint would keep of the log."""
    log = MetricsLog(path, 0)
    for step in steps:
        log.append({"step": step, "loss": step / 7})
    log.close()
    return log.progress()


def test_a_log_goes_on_from_what_a_checkpoint_knew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    saved = log_of(path, [10, 20])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 30, "loss": 1.0}\n{"st')
    log = MetricsLog(path, 20, saved)
    assert path.read_bytes() == whole
    assert log.progress() == saved
    log.append({"step": 30, "loss": 30 / 7})
    log.close()
    assert log.progress() == log_of(tmp_path / "straight.jsonl", [10, 20, 30])


@given(place=st.floats(0, 1, exclude_max=True))
def test_any_flipped_bit_is_told_and_the_file_is_kept(
    tmp_path_factory: pytest.TempPathFactory, place: float
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    saved = log_of(path, [10, 20, 30])
    damaged = bytearray(path.read_bytes())
    bit = int(place * 8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with listening() as told:
        MetricsLog(path, 30, saved).close()
    assert len(told) == 1
    assert "metrics.jsonl is not what was written up to step 30" in told[0]
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == damaged
    with listening() as told:  # set aside once, and good since
        MetricsLog(path, 30, None).close()
    assert told == []


def test_rows_that_cannot_be_written_wait_and_travel_with_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1, "loss": 1.0})

    def full(self: MetricsLog, line: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "_write", full)
        for step in (2, 3):
            with pytest.raises(OSError, match="No space left"):
                log.append({"step": step, "loss": 1.0})
    saved = log.progress()
    assert [row["step"] for row in read_rows(path)] == [1]
    log.close()
    MetricsLog(path, 3, saved).close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    log = MetricsLog(path, 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            log.append({"step": 2, "loss": 1.0})
    log.append({"step": 3, "loss": 1.0})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


@contextmanager
def listening() -> Iterator[list[str]]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lstm_jax.training.metrics")
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
