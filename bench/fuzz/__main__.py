"""The command `python -m bench.fuzz`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import bench.fuzz
from bench.environment import environment
from bench.fuzz.commands import run_commands, run_one
from bench.fuzz.in_process import run_case, run_cases
from bench.fuzz.report import Tally, table
from bench.fuzz.stage import make_stage
from bench.fuzz.trial import limited_memory

_ROOM = 4096


def main() -> int:
    """Runs the cases, prints the table, and tells whether there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=bench.fuzz.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cases", type=int, default=100_000, help="cases in this process")
    parser.add_argument("--commands", type=int, default=200, help="cases of the real commands")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once")
    parser.add_argument("--only", help="one case: its number, or command-NUMBER")
    parser.add_argument("--json", type=Path, help="a file for what came of it")
    arguments = parser.parse_args()
    if arguments.only is not None:
        return _one(arguments.only, arguments.seed)
    began = time.perf_counter()
    tallies: list[Tally] = []
    if arguments.cases:
        with limited_memory(_ROOM):
            tallies += run_cases(range(arguments.cases), arguments.seed)
    middle = time.perf_counter()
    if arguments.commands:
        tallies += run_commands(range(arguments.commands), arguments.seed, arguments.jobs)
    seconds = {"cases": middle - began, "commands": time.perf_counter() - middle}
    for tally in tallies:
        for case, detail in tally.findings:
            print(f"--- {tally.surface}, case {case}\n{detail}", file=sys.stderr)
    print(table(tallies))
    print(f"seed {arguments.seed}; {seconds['cases']:.0f} s, commands {seconds['commands']:.0f} s")
    if arguments.json is not None:
        written = {
            "seed": arguments.seed,
            "environment": asdict(environment()),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "surfaces": [tally.as_json() for tally in tallies],
        }
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return int(any(tally.findings for tally in tallies))


def _one(name: str, seed: int) -> int:
    if name.startswith("command-"):
        with tempfile.TemporaryDirectory(prefix="fuzz-stage-") as folder:
            make_stage(stage := Path(folder) / "work")
            outcome = run_one(int(name.removeprefix("command-")), seed, stage)
    else:
        with limited_memory(_ROOM):
            outcome = run_case(int(name), seed)
    print(f"{outcome.verdict}\n{outcome.detail}")
    return int(outcome.verdict == "finding")


if __name__ == "__main__":
    sys.exit(main())
