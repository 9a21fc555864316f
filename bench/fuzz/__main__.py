"""The command `python -m bench.fuzz`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.fuzz.in_process import run_case, run_cases, surface_of
from bench.fuzz.report import table
from bench.fuzz.trial import limited_memory

_ROOM = 4096


def main() -> int:
    """Runs the cases, prints the table, and tells whether there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
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
    with limited_memory(_ROOM):
        tallies = run_cases(range(arguments.cases), arguments.seed)
    seconds = time.perf_counter() - began
    for tally in tallies:
        for case, detail in tally.findings:
            print(f"--- {tally.surface}, case {case}\n{detail}", file=sys.stderr)
    print(table(tallies))
    print(f"seed {arguments.seed}; {seconds:.0f} s")
    return int(any(tally.findings for tally in tallies))


def _one(name: str, seed: int) -> int:
    number = int(name)
    with limited_memory(_ROOM):
        outcome = run_case(number, seed)
    print(f"{surface_of(number).name}: {outcome.verdict}\n{outcome.detail}")
    return int(outcome.verdict == "finding")


if __name__ == "__main__":
    sys.exit(main())
