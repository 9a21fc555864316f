"""Cases that need no other process: which surface has which, and all of them in a row."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from bench.fuzz import archives, options, run_files, texts, weights
from bench.fuzz.report import Tally
from bench.fuzz.trial import Outcome, Surface, try_case


@lru_cache
def surfaces() -> tuple[Surface, ...]:
    """All of them; PyTorch's own files only where PyTorch is installed."""
    found: tuple[Surface, ...] = (
        texts.TextFiles(),
        texts.Tokens(),
        texts.PoemFiles(),
        texts.VectorFiles(),
        texts.Tables(),
        archives.Archives(),
        archives.Folders(),
        run_files.VocabularyFiles(),
        run_files.ConfigFiles(),
        run_files.MetricsFiles(),
        run_files.VectorArrays(),
        run_files.Prompts(),
        weights.Safetensors(),
        options.Options(),
    )
    if importlib.util.find_spec("torch") is not None:
        found += (weights.PytorchFiles(),)
        importlib.import_module("torch")
    # Not within a case: an import that its alarm cut short would spoil all that follow.
    importlib.import_module("safetensors.numpy")
    return found


def surface_of(number: int) -> Surface:
    """Whose case it is: each has its share of every round, the same one in each."""
    turns = _turns()
    return turns[number % len(turns)]


def run_case(number: int, seed: int) -> Outcome:
    """One case, in a folder of its own."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return try_case(surface_of(number), seed, number, place)
    finally:
        shutil.rmtree(place)


def run_cases(numbers: Iterable[int], seed: int) -> list[Tally]:
    """Cases in a row, and what came of each surface's."""
    tallies = {surface.name: Tally(surface.name) for surface in surfaces()}
    for number in numbers:
        tallies[surface_of(number).name].count(str(number), run_case(number, seed))
    return list(tallies.values())


@lru_cache
def _turns() -> tuple[Surface, ...]:
    return tuple(surface for surface in surfaces() for _ in range(surface.share))
