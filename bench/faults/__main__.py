"""The command `python -m bench.faults`: see the package."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of all devices a CPU gives the same numbers again, and has no memory to wait for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from bench.environment import environment
from bench.faults.corruption import corrupt
from bench.faults.figure import draw_runs
from bench.faults.kills import kill_runs
from bench.faults.lines import Line, failures, replaced, table
from bench.faults.nonfinite import poison
from bench.faults.settings import harmful_settings, harmless_settings
from bench.faults.sharing import share
from bench.faults.signals import second_signal, signal_runs
from bench.faults.space import fill_disks
from bench.faults.tiny import Place, task_of
from bench.plot import require_matplotlib
from lstm_jax.cli.arguments import parse, run_command

PROG = "bench.faults"
_BROKEN = 1
_STEPS = 90


@dataclass(frozen=True)
class Options:
    """Brings faults about, and counts what became of them.

    Attributes:
        kills: how many times a run is killed at a random moment.
        kills_a_run: how many of them one run has to bear.
        flips: how many bits of each file are flipped, one at a time.
        seed: of the moments and the bits.
        work_dir: where the runs go, and stay; by default a folder that is deleted.
        hostile: what `bench.fuzz --json` wrote, for a line of its counts.
        json: where to write the lines.
        write: a document whose part between two markers becomes the table.
        plot: where to draw the curves of a run left alone, a killed and a preempted one.
    """

    kills: int = 100
    kills_a_run: int = 10
    flips: int = 16
    seed: int = 0
    work_dir: Path | None = None
    hostile: Path | None = None
    json: Path | None = None
    write: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        for name in ("kills", "kills_a_run", "flips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        require_matplotlib(self.plot)
        if self.write is not None:
            replaced(self.write.read_text(encoding="utf-8"), "")
        if self.hostile is not None:
            hostile_line(self.hostile)
        if self.work_dir is not None and self.work_dir.exists() and any(self.work_dir.iterdir()):
            raise ValueError(f"{self.work_dir} is not empty; name another --work-dir")


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    options = parse(Options, Options(), arguments, PROG)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        return _run(options, options.work_dir or Path(temporary))


def _run(options: Options, folder: Path) -> int:
    place = Place(folder, _STEPS)
    place.make()
    _say("training a run that is left alone")
    whole = place.finished("alone")
    task = task_of(whole)
    parts: dict[str, Callable[[], list[Line]]] = {
        "SIGKILL": lambda: [
            kill_runs(
                place, whole, kills=options.kills, a_run=options.kills_a_run, seed=options.seed
            )
        ],
        "SIGTERM and SIGINT": lambda: [
            *signal_runs(place, whole),
            second_signal(place, whole, task),
        ],
        "damaged files": lambda: corrupt(
            whole, task, folder / "damaged", flips=options.flips, seed=options.seed
        ),
        "no space": lambda: fill_disks(whole, task, folder / "space"),
        "not finite": lambda: [poison(whole, task, folder)],
        "two processes": lambda: share(place, whole, task),
        "other settings": lambda: [harmless_settings(place, whole), harmful_settings(place, whole)],
    }
    lines: list[Line] = []
    for name, part in parts.items():
        _say(name)
        lines += part()
    if options.hostile is not None:
        lines.append(hostile_line(options.hostile))
    _write(options, place, lines)
    for failure in failures(lines):
        print(f"broken: {failure}", file=sys.stderr)
    return _BROKEN if failures(lines) else 0


def hostile_line(file: Path) -> Line:
    """What `python -m bench.fuzz --json FILE` counted, in one line.

    Raises:
        ValueError: the file is not of that bench.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tallies = content if isinstance(content, list) else content["surfaces"]
        tried, refused, accepted = (
            sum(int(tally[name]) for tally in tallies) for name in ("cases", "refused", "accepted")
        )
        found = [
            f"{tally['surface']}, case {each['case']}"
            for tally in tallies
            for each in tally["findings"]
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is not what bench.fuzz --json writes: {error!r}") from None
    seen = f"{refused:,} refused by one line, {accepted:,} accepted; {len(tallies)} surfaces"
    return Line("hostile input (`python -m bench.fuzz`)", tried, tuple(found), seen)


def _write(options: Options, place: Place, lines: Sequence[Line]) -> None:
    found = environment()
    text = f"{table(lines)}\n\n{_ran_on(options)}"
    print(text)
    if options.json is not None:
        content = {
            "environment": dataclasses.asdict(found),
            "options": {"kills": options.kills, "flips": options.flips, "seed": options.seed},
            "lines": [line.as_json() for line in lines],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.write is not None:
        document = replaced(options.write.read_text(encoding="utf-8"), text)
        options.write.write_text(document, encoding="utf-8")
    if options.plot is not None:
        runs = {
            "left alone": "alone",
            "killed again and again (SIGKILL)": "killed-1",
            "preempted (SIGTERM) and resumed": "SIGTERM-evaluation",
        }
        draw_runs({name: place.path / run for name, run in runs.items()}, options.plot)


def _ran_on(options: Options) -> str:
    found = environment()
    versions = ", ".join(
        f"{name} {found.versions[name]}" for name in ("python", "jax") if name in found.versions
    )
    return f"Seed {options.seed}; {found.device}, {found.threads['cores']} cores; {versions}."


def _say(what: str) -> None:
    print(f"{PROG}: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
