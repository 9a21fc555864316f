"""Whether a change of the code changes a number: short runs of two checkouts, compared to the bit.

    python tests/reference.py make CHECKOUT FOLDER [PRESET ...]
    python tests/reference.py compare FOLDER OTHER

`make` trains each preset, and what it follows (`--as-published`), for 40 steps with a checkout's
`train.py`, writes and judges texts with its `sample.py`, and keeps what these print and the rows of
metrics, without times. It needs the corpora in LSTM_JAX_DATA.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = {
    "docs": {},
    "anna": {"--data": "anna.txt"},
    "shakespeare": {"--data": "tinyshakespeare.txt"},
    "poems": {"--data": "tang_poems.txt"},
    "reviews": {"--data": "aclImdb_train.tar.gz", "--vectors": "glove.6B.50d.10k.txt"},
    "lyrics": {"--data": "anna.txt"},
}
SHORT = shlex.split(
    "--steps 40 --intervals steps --log-every 1 --evaluate-every 20 --checkpoint-every 20 "
    "--sample-every 20 --seed 1"
)
TIMED = ("seconds", "tokens_per_second", "crc32")
REVIEWS = "A dull film, but the music saves it.\nFine actors and a story that moves.\n"


def make(checkout: Path, folder: Path, preset: str, *published: str) -> None:
    """Keeps a run's rows and texts as `PRESET.txt`."""
    target = folder / f"{'-'.join((preset, *published)).replace('---', '-')}.txt"
    if target.exists():
        return
    corpora = Path(os.environ["LSTM_JAX_DATA"])
    data = [part for flag, name in DATA[preset].items() for part in (flag, str(corpora / name))]
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        shown = called(
            checkout, "train.py", preset, *published, "--run-dir", run, *data, *SHORT
        ).partition("parameters")[2]
        samples = re.findall(r"^--- sample .*?^---$", shown, re.MULTILINE | re.DOTALL)
        # Resuming at the end reads the checkpoint with the optimizer; --eval-only judges it.
        called(checkout, "train.py", "--run-dir", run, "--resume")
        judged = called(checkout, "train.py", "--run-dir", run, "--eval-only", ok=(0, 2))
        if preset == "reviews":
            (Path(temporary) / "reviews.txt").write_text(REVIEWS)
            command = ("-m", "lstm_jax", "classify")
            written = called(checkout, *command, run, Path(temporary) / "reviews.txt")
        else:
            written = called(checkout, "sample.py", run, "--seed", 3, "--length", 100)
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        kept = [
            json.dumps({name: value for name, value in row.items() if name not in TIMED})
            for row in rows
        ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([*kept, *samples, judged, written]))


def called(checkout: Path, *arguments: object, ok: tuple[int, ...] = (0,)) -> str:
    """What a command of the checkout prints to standard output."""
    found = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode not in ok:
        raise SystemExit(f"{arguments}: exit code {found.returncode}\n{found.stderr}")
    return found.stdout


def compare(folder: Path, other: Path) -> int:
    """Prints where two folders of `make` differ first; 1 if anywhere."""
    different = 0
    for name in sorted({path.name for each in (folder, other) for path in each.glob("*.txt")}):
        pair = [
            (each / name).read_text().splitlines() if (each / name).exists() else []
            for each in (folder, other)
        ]
        same = pair[0] == pair[1]
        different += not same
        print(
            f"{name}: {'equal' if same else 'DIFFERENT'}, {len(pair[0])} and {len(pair[1])} lines"
        )
        if not same:
            first = next((x for x in zip(*pair, strict=False) if x[0] != x[1]), ("", ""))
            print(f"  {first[0]:.300}\n  {first[1]:.300}")
    return min(different, 1)


if __name__ == "__main__":
    what, first, second, *presets = sys.argv[1:]
    if what == "compare":
        sys.exit(compare(Path(first), Path(second)))
    for preset in presets or DATA:
        for published in ((), ("--as-published",)):
            if preset != "docs" or not published:
                make(Path(first).resolve(), Path(second).resolve(), preset, *published)
                print(preset, *published, flush=True)
