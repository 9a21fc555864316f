"""`metrics.jsonl`: whole rows, each once, whatever happened to the run before."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_cases import files_of_at_most

from lstm_jax.training.log import Meter, MetricsLog, MetricSums, part_metrics, read_rows


def write(path: Path, steps: list[int], last_step: int) -> None:
    log = MetricsLog(path, last_step)
    for step in steps:
        log.append({"step": step, "loss": step / 7})
    log.close()


@given(cut=st.integers(0, 90), resume=st.integers(0, 5))
def test_a_cut_and_resumed_log_has_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int, resume: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    write(path, [10, 20, 30, 40, 50], 0)
    assert read_rows(path) == [{"step": step, "loss": step / 7} for step in range(10, 51, 10)]
    whole = path.read_text()
    path.write_text(whole[: len(whole) - cut])
    left = [row["step"] for row in read_rows(path)]
    last = min(10 * resume, left[-1] if left else 0)
    write(path, [step for step in (10, 20, 30, 40, 50) if step > last], last)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("loss", "expected"), [(0, 1), (math.log(83), 83), (1e6, math.inf), (math.nan, math.nan)]
)
def test_perplexity_is_the_exponential_of_the_loss(loss: float, expected: float) -> None:
    row = part_metrics("", MetricSums(3 * loss, 0.0, 3.0), with_perplexity=True)
    assert row["perplexity"] == pytest.approx(expected, nan_ok=True)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "line", [DEEP, '{"step": true}', '{"step": 1.5}', "[1]", '"\ud800"', '{"step": 2\udcff}', "{"]
)
def test_a_line_that_is_no_row_ends_the_rows_and_is_told_on_resuming(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the file is kept."""
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 10}', line, '{"step": 30}', ""]
    damaged = "\n".join(lines).encode(errors="surrogatepass")
    path.write_bytes(damaged)
    assert read_rows(path) == [{"step": 10}]
    write(path, [40], 30)
    (told,) = caplog.messages
    assert told.startswith(f"{path} is damaged, or was changed; its lines that are no rows (1) are")
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == damaged
    assert [row["step"] for row in read_rows(path)] == [10, 30, 40]
    caplog.clear()
    path.write_bytes(path.read_bytes() + b'{"st')  # what a kill leaves is nothing to tell
    write(path, [], 40)
    assert caplog.messages == []


def test_rows_that_find_no_space_wait_for_the_next_that_does(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1, "loss": 1.0})
    with files_of_at_most(path.stat().st_size + 5):  # some of a row finds space
        for step in (2, 3):
            with pytest.raises(OSError, match="too large") as error:
                log.append({"step": step, "loss": 1.0})
            assert error.value.filename == str(path)
    assert [row["step"] for row in read_rows(path)] == [1]
    assert path.read_text().endswith("\n")
    log.append({"step": 4, "loss": 1.0})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


@given(cut=st.integers(0, 6))
def test_a_row_of_steps_of_two_processes_is_that_of_one(cut: int) -> None:
    def row(cuts: list[int]) -> dict[str, object]:
        meter = Meter({})
        for step in range(6):
            if step in cuts:
                meter = Meter(json.loads(json.dumps(meter.progress())))
            parts = {"": [step / 7, 1.0, 4.0]} if step != 3 else None
            meter.add(parts, step / 9, 8.0, compiled=step in {0, *cuts})
        assert not meter.is_empty
        found = meter.row(0.1, with_perplexity=True)
        assert meter.is_empty
        assert found.pop("seconds", 0)
        assert found.pop("tokens_per_second", 0)
        assert found["skipped_steps"] == 1
        return dict(found)

    assert row([cut]) == row([])
