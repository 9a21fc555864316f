"""Everything there is to measure on a GPU, in one command of a few minutes.

The parts run one after the other, each in its own process and with a share of the remaining
minutes, so time that a part does not use goes to the next ones. Rows are written as soon as they
are known: a part that takes too long, hangs or dies loses none. The table is printed last, or from
an existing file with `--table FILE`. If the file already has rows, finished cases are skipped.
docs/performance.md has the parts, and what is checked before anything is timed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from bench import card
from bench.card import Record
from bench.device_cases import Case, layer_cases, sampling_cases, training_cases
from bench.device_race import race_all
from bench.device_table import rows_in, table
from bench.report import environment
from bench.timing import Timing
from bench.workers import SPAWN
from lstm_jax.settings import Checked, Positive
from lstm_jax.training.log import read_rows

_TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. " * 200
_TO_END_S = 8.0
"""Seconds that a part's command has to stop, and then to be killed, before the part is."""

PartName = Literal["rates", "layers", "train", "sample", "tests", "anna"]


@dataclass(frozen=True)
class Options(Checked):
    """Measure ours on this device, beside its peers."""

    minutes: Positive = 8.0  # time for all parts.
    #: parts to run.
    parts: tuple[PartName, ...] = ("rates", "layers", "train", "sample", "tests", "anna")
    json: Path = Path("device.jsonl")  # file to which rows are appended, one per line.
    dry_run: bool = False  # run everything in small, to see that it works.
    table: Path | None = None  # print the table of this file's rows, and measure nothing.


class Task(NamedTuple):
    """Arguments of a part: file of rows, seconds, and whether it is a dry run."""

    file: Path
    limit_s: float
    small: bool


class Part(NamedTuple):
    """Name of a part, its share of the time relative to others, and its function."""

    name: str
    share: float
    run: Callable[[Task, Record], None]


def rates(task: Task, record: Record) -> None:
    card.measure(record, small=task.small)


def race(cases: Callable[..., list[Case]], task: Task, record: Record) -> None:
    names = ("part", "system", "implementation", "dtype")
    done = {tuple(row.get(name, "") for name in names) for row in rows_in(task.file)}
    race_all(cases(small=task.small), done, record)


def tests(task: Task, record: Record) -> None:
    names = ["test_settings.py"] if task.small else ["test_gpu_form.py", "test_stack.py", ""]
    command = ["-m", "pytest", "-v", "--tb=line", "--maxfail=20", "-p", "no:cacheprovider"]
    platforms = "cpu" if jax.default_backend() == "cpu" else "cuda,cpu"
    files = [f"tests/core/{name}" for name in names]
    told = _printed([*command, *files], task.limit_s, JAX_PLATFORMS=platforms)
    failed = [line for line in told.splitlines() if line.startswith(("FAILED", "ERROR"))]
    end = told.strip().rpartition("\n")[2]
    record("tests/core", told=f"{told.count(' PASSED')} passed {'; '.join(failed)[:2000]} {end}")


def anna(task: Task, record: Record) -> None:
    """Train until the time is over, with a tenth of the novel held out."""
    with tempfile.TemporaryDirectory(prefix="anna-") as temporary:
        run, text = Path(temporary, "run"), Path(temporary, "text")
        flags = ["--heldout-share", "0.1", "--compute-dtype", "tf32", "--run-dir", str(run)]
        if task.small:
            text.write_text(_TEXT, encoding="utf-8")
            small = f"--data {text} --hidden-size 8 --steps 3 --batch-size 4 --sequence-length 20"
            flags += [*small.split(), "--devices", "1"]
        elif folder := os.environ.get("LSTM_JAX_DATA"):
            flags += ["--data", str(Path(folder, "anna.txt"))]
        told = _printed(["train.py", "anna", *flags], task.limit_s)
        rows = read_rows(run / "metrics.jsonl")
        last = {name: value for row in rows for name, value in row.items() if value is not None}
        record("train.py anna", told=json.dumps(last) if last else told[-300:].strip())


PARTS = (
    Part("rates", 1.0, rates),
    Part("layers", 8.0, partial(race, layer_cases)),
    Part("train", 4.0, partial(race, training_cases)),
    Part("sample", 2.0, partial(race, sampling_cases)),
    Part("tests", 1.5, tests),
    Part("anna", 2.0, anna),
)


def _printed(command: Sequence[str], limit_s: float, **variables: str) -> str:
    """Output of a Python command, which is stopped before the part's time is over."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        given: Any = {"env": os.environ | variables, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([sys.executable, *command], **given)
        patience_s = max(1.0, limit_s - 2 * _TO_END_S)
        for end in (process.terminate, process.kill):
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                end()
                patience_s = _TO_END_S
        process.wait()
        file.seek(0)
        return file.read()


@contextmanager
def recording(file: Path, part: str) -> Iterator[Record]:
    """Give a function that appends a part's rows to a file, each at once."""
    with file.open("a", encoding="utf-8", buffering=1) as opened:

        def record(system: str, timing: Timing | None = None, **fields: Any) -> None:
            row = {"bench": "device", "part": part, "system": system, "dtype": "", **fields}
            if timing is not None:
                row |= timing._asdict()
                row["tokens_per_second"] = 1e3 * fields.get("tokens", 0) / timing.median_ms
            print(json.dumps(row | vars(environment())), file=opened)

        yield record


def run_all(parts: Sequence[Part], minutes: float, file: Path, *, small: bool) -> None:
    with file.open("a+", encoding="utf-8") as opened:
        opened.seek(0)
        if opened.read()[-1:] not in ("", "\n"):
            opened.write("\n")  # after a line that was cut off
    end = time.monotonic() + 60 * minutes
    for place, part in enumerate(parts):
        began, shares = time.monotonic(), sum(each.share for each in parts[place:])
        limit_s = (end - began) * part.share / shares
        print(f"{part.name}: at most {limit_s:.0f} s", flush=True)
        process = SPAWN.Process(target=_run, args=(part, Task(file, limit_s, small)))
        process.start()
        try:
            process.join(limit_s)
            code = process.exitcode
        finally:  # the part and all processes that it started
            with suppress(ProcessLookupError):
                os.killpg(process.ident or 0, signal.SIGKILL)
            process.kill()
        process.join(_TO_END_S)
        how = {None: "was stopped at its limit", 0: "ended"}.get(code, f"died with {code}")
        how += f" after {time.monotonic() - began:.0f} s"
        print(f"{part.name}: {how}", flush=True)
        if code != 0:
            with file.open("a", encoding="utf-8") as opened:
                row = {"bench": "device", "part": part.name, "system": part.name, "failed": how}
                print(json.dumps(row), file=opened)


def _run(part: Part, task: Task) -> None:
    """Run a part in its process, in a process group of its own."""
    os.setpgid(0, 0)
    with recording(task.file, part.name) as record:
        part.run(task, record)


def main(options: Options) -> int:
    if options.table is None:
        parts = [part for part in PARTS if part.name in options.parts]
        run_all(parts, options.minutes, options.json, small=options.dry_run)
    if not (rows := rows_in(file := options.table or options.json)):
        raise ValueError(f"{file} has no rows of this bench; measure something into it first")
    try:
        print("\n".join(table(rows)))
    except (LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{file} has rows that this bench did not write: {error!r}") from None
    return 0
