"""Makes the run folders that every later version must load, and what is expected of them.

    python tests/faults/make_fixtures.py

Each was made by the version whose format it is of, and stays as it is: what is there is left, what
is not there is made.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lstm_jax.cli.main import train_command

sys.path.append(str(Path(__file__).parent))

from old_runs import CLASSIFIER, FIXTURES, expectations_of

_SMALL = [
    "--model.hidden-size", "6", "--batch-size", "4", "--steps", "6", "--log-every", "2",
    "--evaluate-every", "6", "--checkpoint-every", "6", "--keep-checkpoints", "1",
]  # fmt: skip
_DATA = FIXTURES / "data"
_COMMANDS = {
    "lstm": [
        "--data", "wall.txt", "--sequence-length", "12", "--sample-prompts", "7", "--sample-every",
        "0",
    ],
    "gru": [
        "--data", "wall.txt", "--sequence-length", "12", "--sample-prompts", "7", "--sample-every",
        "0", "--model.cell", "gru", "--tokens", "word", "--sample-prompts", "milk",
    ],
    "poems": [
        "poems", "--data", "poems.txt", "--length", "20", "--sample-every", "0",
        "--model.embedding-size", "6",
    ],
    "poems_in_one_file": [
        "poems", "--data", "poems.txt", "--length", "20", "--sample-every", "0",
        "--model.embedding-size", "6", "--model.cell", "gru", "--model.layers", "2",
    ],
    CLASSIFIER: [
        "reviews", "--data", "reviews.csv", "--length", "8", "--vocabulary-size", "20",
        "--vectors", "vectors.txt", "--patience", "0", "--model.dense-size", "4",
    ],
}  # fmt: skip


def write_data() -> None:
    """The texts that the runs are trained on."""
    _DATA.mkdir(parents=True, exist_ok=True)
    lines = [f"{n} bottles of milk in row {n % 7} of the wall.\n" for n in range(40)]
    (_DATA / "wall.txt").write_text("".join(lines))
    poems = [f"t{n}:{'abcde'[n % 5]}{'vwxyz'[n % 3]}{'klm'[n % 2]}ab{n}\n" for n in range(40)]
    (_DATA / "poems.txt").write_text("".join(poems))
    reviews = [
        f'"a {("dull", "fine")[n % 2]} film with {("no", "some", "much")[n % 3]} music",{n % 2}\n'
        for n in range(30)
    ]
    (_DATA / "reviews.csv").write_text("text,label\n" + "".join(reviews))
    words = ("a", "dull", "fine", "film", "with", "no", "some", "much", "music")
    vectors = [f"{word} {n / 8} {(n % 3) / 4} -{n / 16}\n" for n, word in enumerate(words)]
    (_DATA / "vectors.txt").write_text("".join(vectors))


def main() -> None:
    """Trains each run that is not there yet, and writes what is to be expected of it."""
    write_data()
    os.chdir(FIXTURES)  # so that no path of this machine gets into the runs
    expectations = Path("expected.json")
    expected = json.loads(expectations.read_text()) if expectations.exists() else {}
    for name, arguments in _COMMANDS.items():
        run = Path("runs") / name
        if run.exists():
            continue
        found = [f"data/{part}" if Path("data", part).is_file() else part for part in arguments]
        code = train_command([*found, *_SMALL, "--run-dir", str(run)])
        if code:
            raise SystemExit(code)
        # Orbax writes where the folder lay into files that nothing reads.
        for file in (run / ".lock", run / "curves.png", *run.rglob("commit_success.txt")):
            file.unlink(missing_ok=True)
        expected[name] = expectations_of(name)
    expectations.write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
