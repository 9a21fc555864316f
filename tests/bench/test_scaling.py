"""The bench of processes that train together, on a tiny system."""

from __future__ import annotations

from typing import Any

import pytest
from other_work import TINY

from bench import scaling, shapes
from bench.report import cores


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="each of two processes takes a core")
def test_processes_train_alone_and_together(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    alone, together = rows_of(scaling, "--rounds 3 --steps 2", draws=False)
    assert (alone.implementation, together.implementation) == (scaling.ALONE, scaling.TOGETHER)
    assert alone.tokens_per_second * alone.median_ms == pytest.approx(
        2e3 * TINY.tokens_per_step  # of both
    )
    efficiency = together.details["efficiency"]
    assert 0 < efficiency["p10"] <= efficiency["median"] <= efficiency["p90"]
    assert f"reach {efficiency['median']:.3f} of their speed" in capsys.readouterr().out


def test_a_process_takes_a_core() -> None:
    with pytest.raises(ValueError, match=f"each takes a core, so choose 2 to {cores()} here"):
        scaling.ScalingOptions(processes=cores() + 1)
