"""The verdict on memory and rate over time."""

from pathlib import Path

import numpy as np
import pytest

from bench.endurance import Point, Verdict, Watch, draw, line_of, verdict


def points(mb_an_hour: float, percent_an_hour: float, minutes: float = 10) -> list[Point]:
    """A trend under noise, after a first minute in which memory grows fast."""
    random = np.random.default_rng(0)
    found = []
    for second in np.linspace(1, 60 * minutes, 300):
        hours = second / 3600
        memory = 400 + mb_an_hour * hours + min(0, second - 60) + random.normal(0, 0.5)
        rate = 100 + percent_an_hour * hours + random.normal(0, 1)
        found.append(Point(float(second), float(memory), float(rate)))
    return found


def judged(found: list[Point]) -> Verdict:
    return verdict(found, most_mb=20.0, most_percent=10.0)


@pytest.mark.parametrize(
    ("mb", "percent", "grows", "slows"),
    [(0, 0, False, False), (100, 0, True, False), (0, -50, False, True), (-100, 50, False, False)],
)
def test_a_trend_is_found_if_there_is_one(
    mb: float, percent: float, grows: bool, slows: bool
) -> None:
    found = judged(points(mb, percent))
    assert (found.grows, found.slows) == (grows, slows)
    assert found.memory.low < mb < found.memory.high
    assert found.rate.slope == pytest.approx(percent, abs=6)
    assert ("steady" in str(found)) == (not grows and not slows)


def test_a_few_odd_points_change_little_and_too_few_are_refused() -> None:
    odd = [p._replace(resident_mb=900.0) if n % 20 == 7 else p for n, p in enumerate(points(0, 0))]
    assert not judged(odd).grows
    with pytest.raises(ValueError, match="--minutes"):
        judged(odd[:2])


def test_the_watch_counts_what_is_done_a_second() -> None:
    now = iter(range(1000))
    watch = Watch(400, clock=lambda: float(next(now)), memory=lambda: 7.0)
    for _ in range(3):
        watch.did(5)
    assert [point.resident_mb for point in watch.points] == [7.0] * 3
    assert [point.rate for point in watch.points] == [5.0] * 3
    assert not watch.is_over()


def test_a_picture_is_drawn_and_a_line_holds_the_verdict(tmp_path: Path) -> None:
    found = {"training": points(0, 0), "sampling": points(1, 1)}
    verdicts = {name: judged(each) for name, each in found.items()}
    draw(found, verdicts, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    line = line_of("training", found["training"], verdicts["training"])
    assert (line["system"], line["grows"]) == ("training", False)
    assert line["memory"]["slope"] == verdicts["training"].memory.slope
    assert line["points"][0] == [round(value, 3) for value in found["training"][0]]
