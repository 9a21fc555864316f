"""The loop's rate beside that of its bare step, on a tiny system."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from bench import rate
from bench.rate import Options, random_system, reported_rate
from lstm_jax.systems import preset_named
from lstm_jax.systems.language import LYRICS, LanguageSystem

TINY = dataclasses.replace(
    LYRICS,
    characters=40,
    batch_size=3,
    sequence_length=5,
    model=dataclasses.replace(LYRICS.model, hidden_size=4),
)


def test_rows_make_one_rate_of_all_steps_but_the_first() -> None:
    """3 steps of 10 tokens in 1 s each, then 4 in half a second each: 70 tokens in 5 s."""
    rows: list[Any] = [
        {"step": 4, "tokens_per_second": 10.0},
        {"step": 8, "tokens_per_second": 20.0},
    ]
    assert reported_rate(rows) == pytest.approx(14.0)
    # The rate of a row of the first step alone is that of compilation.
    alone: dict[str, Any] = {"step": 1, "tokens_per_second": 0.01}
    assert reported_rate([alone, {"step": 5, "tokens_per_second": 20.0}]) == pytest.approx(20.0)


@pytest.mark.slow
def test_what_the_loop_does_between_steps_lowers_the_ratio(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each batch takes 50 ms to make, which the bare step finds made."""
    make = LanguageSystem.feed

    def slow(system: LanguageSystem) -> Callable[[int], Any]:
        feed = make(system)

        def data(step: int) -> Any:
            time.sleep(0.05)
            return feed(step)

        return data

    monkeypatch.setattr(LanguageSystem, "feed", slow)
    monkeypatch.setattr(rate, "preset_named", lambda name: TINY)
    (row,) = rows_of("rate", "--steps 5 --rounds 2", draws=False)
    assert (row.bench, row.system, row.implementation) == ("rate", "lyrics", "lstm_jax")
    assert row.calls == 2 * (5 - 1)
    assert row.p10_ms <= row.median_ms <= row.p90_ms
    assert row.median_ms > 50
    # A step is noted once the next one is dispatched: 4 steps, 3 batches.
    assert row.tokens_per_second < 4 * 15 / (3 * 0.05)
    assert row.details["bare_tokens_per_second"] > row.tokens_per_second
    ratio = row.details["ratio"]
    assert ratio == pytest.approx(sum(row.details["ratios"]) / 2)
    assert ratio < 0.7
    assert f"the loop reaches {ratio:.3f} of it" in capsys.readouterr().out


@pytest.mark.parametrize("name", get_args(get_type_hints(Options)["system"]))
def test_data_fills_every_batch_of_the_preset(name: str) -> None:
    config: Any = preset_named(name)
    feed = random_system(name, 20).feed()
    for step in (0, 19):
        data = feed(step)
        times = config.sequence_length if hasattr(config, "sequence_length") else config.length
        if name == "poems":
            times -= 1  # the last character is a target only
        rows, batch_size = data[0].shape
        assert (rows >= times + 1) if hasattr(data, "rows") else (rows == times)
        assert batch_size == config.batch_size
        assert np.all(getattr(data, "mask", True))
