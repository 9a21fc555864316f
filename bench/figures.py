"""Figures by which a run is judged, depending on its system, and their descriptions."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.runs import Run, number
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig

LYRICS = "lyrics"  # The preset that memorises its text, so that its training perplexity counts.
Row = Mapping[str, Any]
_LYRICS_EPOCHS = (40, 160)


class Point(NamedTuple):
    """A number from a run's log, and the epoch of its row."""

    value: float
    epoch: float


class Spread(NamedTuple):
    """A figure over several runs: its range, and for each run that has it the value and epoch."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    epochs: tuple[float, ...]


def spread(points: Sequence[Point]) -> Spread:
    """Mean and range of one or more points; all NaN if one is."""
    values, epochs = zip(*points, strict=True)
    if any(map(math.isnan, values)):
        return Spread(math.nan, math.nan, math.nan, values, epochs)
    # Not `fmean`, whose rounding may put the mean of equal values outside their range.
    return Spread(statistics.mean(values), min(values), max(values), values, epochs)


def figures(run: Run) -> dict[str, Point]:
    """The figures by which a run is judged; empty before its first evaluation.

    `heldout_loss` is the last and `best_heldout_loss` the lowest; other names with `best_` are from
    the row of the lowest, whose checkpoint is kept.
    """
    if run.config.preset == LYRICS:
        at = {row.get("epoch"): _point(row, "perplexity") for row in run.rows}
        found = {f"perplexity_at_{epoch}": at[epoch] for epoch in _LYRICS_EPOCHS if epoch in at}
        return found or {"perplexity": _point(run.rows[-1], "perplexity")}
    if not run.config.heldout_share:
        return {"training_loss": _point(run.rows[-1], "loss")}
    evaluations = [row for row in run.rows if "heldout_loss" in row]
    if not evaluations:
        return {}
    if isinstance(run.config, ReviewsConfig):
        highest = _least(evaluations, "heldout_accuracy", -1)
        found = {"highest_heldout_accuracy": _point(highest, "heldout_accuracy")}
        names = ["heldout_loss", "heldout_accuracy"]
    else:
        found = {"heldout_loss": _point(evaluations[-1], "heldout_loss")}
        names = ["heldout_loss"]
    if isinstance(run.config, PoemsConfig):
        names += ["heldout_accuracy", "heldout_end_loss"]
    best = _least(evaluations, "heldout_loss")
    return found | {f"best_{name}": _point(best, name) for name in names}


def _point(row: Row, name: str) -> Point:
    return Point(number(row, name), number(row, "epoch"))


def _least(rows: Sequence[Row], name: str, sign: int = 1) -> Row:
    """The row with the lowest number, or with sign -1 the highest, ignoring NaN."""
    return min(rows, key=lambda row: (math.isnan(value := sign * number(row, name)), value))


def shown(found: Mapping[str, Spread]) -> str:
    if not found:
        return "not evaluated yet"
    if "highest_heldout_accuracy" in found:
        accuracy, highest = found["best_heldout_accuracy"], found["highest_heldout_accuracy"]
        text = f"{_share(accuracy)} {_when(accuracy)}"
        return text if highest == accuracy else f"{text} (highest {_share(highest)})"
    if "heldout_loss" not in found:
        return ", ".join(f"{decimals(each)} {_when(each)}" for each in found.values())
    last, best = found["heldout_loss"], found["best_heldout_loss"]
    text = f"{decimals(last)} {_when(last)}"
    if best != last:
        text += f", best {decimals(best)} {_when(best)}"
    if "best_heldout_accuracy" in found:
        text += f", accuracy {_share(found['best_heldout_accuracy'])}"
    return text


def explained(config: TrainConfig) -> str:
    share = f"{100 * config.heldout_share:.3g}%"
    is_of_words = isinstance(config, LanguageConfig) and config.tokens != "char"
    token = "word" if is_of_words else "character"
    if config.preset == LYRICS:
        return "training perplexity at epochs 40 and 160, or else the last; it learns by heart"
    if isinstance(config, ReviewsConfig):
        if not config.heldout_share:
            return "training loss in nats per review, nothing held out"
        return (
            "held-out accuracy where the held-out loss is lowest (the checkpoint that is kept; the "
            f"highest accuracy is a remark); held out: {share} of the reviews, drawn by the seed"
        )
    if not config.heldout_share:
        return (
            f"training loss in nats per {token}, mean over the last row's steps; nothing held out"
        )
    ends = ""
    if isinstance(config, PoemsConfig):
        ends = ", poems' ends apart, and accuracy at the best"
        which = "drawn by the seed" if config.heldout_from == "random" else "the file's last"
        split = f"{share} of the poems, {which}"
    else:
        assert isinstance(config, LanguageConfig)
        split = f"the text's last {share}"
        if config.heldout_from == "lanes":
            split = f"the last {share} of each of a batch's lanes, so from all over the text"
    return f"held-out loss in nats per {token}, the last and the best{ends}; held out: {split}"


def decimals(found: Spread) -> str:
    """Format a spread with suitable digits for a loss or perplexity."""
    return _ranged(found, lambda value: f"{value:,.3f}" if value < 100 else f"{value:,.0f}")


def _share(found: Spread) -> str:
    return _ranged(found, lambda value: f"{100 * value:.1f}%")


def _ranged(found: Spread, written: Callable[[float], str]) -> str:
    if math.isnan(found.mean):
        return "not finite"
    if found.low == found.high:
        return written(found.mean)
    return f"{written(found.mean)} [{written(found.low)}, {written(found.high)}]"


def _when(found: Spread) -> str:
    low, high = min(found.epochs), max(found.epochs)
    return f"at epoch {low:.4g}" if low == high else f"at epochs {low:.4g} to {high:.4g}"
