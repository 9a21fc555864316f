"""Run folders that every later version must load, and what is expected of them.

    python tests/faults/old_runs.py

makes those that are not there yet. Each was made by the version whose format it is of, from the
texts in `fixtures/data`, and stays as it is.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from lstm_jax.cli.main import train_command
from lstm_jax.sampling import FREE, generate
from lstm_jax.systems.reviews import probabilities

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = FIXTURES / "runs"
CLASSIFIER = "reviews"
_TEXTS = {
    "lstm": "7 bottles of milk",
    "gru": "bottles of milk in row",
    "poems": "avkab",
    "poems_in_one_file": "avkab",
}
_REVIEWS = ("a dull film with no music", "a fine film with much music")

_SMALL = (
    "--model.hidden-size 6 --batch-size 4 --steps 6 --log-every 2 --evaluate-every 6 "
    "--checkpoint-every 6 --keep-checkpoints 1"
)
_OF_TEXT = "--data data/wall.txt --sequence-length 12 --sample-prompts 7 --sample-every 0"
_OF_POEMS = "poems --data data/poems.txt --length 20 --sample-every 0 --model.embedding-size 6"
_COMMANDS = {
    "lstm": _OF_TEXT,
    "gru": f"{_OF_TEXT} --model.cell gru --tokens word --sample-prompts milk",
    "poems": _OF_POEMS,
    "poems_in_one_file": f"{_OF_POEMS} --model.cell gru --model.layers 2",
    CLASSIFIER: "reviews --data data/reviews.csv --length 8 --vocabulary-size 20 "
    "--vectors data/vectors.txt --patience 0 --model.dense-size 4",
}


def expectations_of(name: str) -> dict[str, Any]:
    """A loss and a greedy text of a language model; probabilities of a classifier."""
    model, params, vocabulary, config = lstm_jax.load(RUNS / name)
    if name == CLASSIFIER:
        found = probabilities(model, params, vocabulary, config, _REVIEWS, 2)
        return {"probabilities": [float(value) for value in found]}
    ids = jnp.asarray(vocabulary.encode_prompt(_TEXTS[name]))[:, None]
    sums, _ = model.token_sums(params, None, ids[:-1], ids[1:])
    template = np.full((24, 1), FREE)
    template[: len(ids)] = ids
    texts = generate(model, params, template, key=jax.random.key(0), temperature=0.0)
    return {"loss": float(sums.loss / sums.weight), "tokens": texts.row(0).tolist()}


def main() -> None:
    """Trains each run that is not there yet, and writes what is to be expected of it."""
    os.chdir(FIXTURES)  # so that no path of this machine gets into the runs
    expectations = Path("expected.json")
    expected = json.loads(expectations.read_text())
    for name, line in _COMMANDS.items():
        run = Path("runs") / name
        if run.exists():
            continue
        code = train_command(shlex.split(f"{line} {_SMALL} --run-dir {run}"))
        if code:
            raise SystemExit(code)
        # Orbax writes where the folder lay into files that nothing reads.
        for file in (run / ".lock", run / "curves.png", *run.rglob("commit_success.txt")):
            file.unlink(missing_ok=True)
        expected[name] = expectations_of(name)
    expectations.write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
