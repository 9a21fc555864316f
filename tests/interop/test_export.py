"""Exported models: what they compute is what the library computes, without the library."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import assert_near
from jax import random

import lstm_jax
from lstm_jax import interop
from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.cli.main import PROG, main
from lstm_jax.cli.train import train_command
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import FREE, generate, stack_rows

pytest.importorskip("flatbuffers", reason="flatbuffers, an optional extra, is not installed")

V, H = 11, 6
ENTRIES: dict[str, dict[str, Any]] = {
    "one-hot": {},
    "embedding": {"embedding_size": 4},
    "tied": {"embedding_size": H, "tied": True},
}


def language_model(**options: Any) -> tuple[LanguageModel, Any]:
    model = LanguageModel(LanguageModelConfig(hidden_size=H, **options), V)
    # Weights of some size, so that what is likely differs from place to place.
    return model, jax.tree.map(lambda leaf: 2 * leaf, model.init(random.key(0)))


def classifier(**options: Any) -> tuple[Classifier, Any]:
    model = Classifier(ClassifierConfig(hidden_size=H, embedding_size=5, **options), V)
    return model, model.init(random.key(0))


def ids(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def reloaded(exported: Any) -> Any:
    return jax.export.deserialize(exported.serialize())


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        ("one-hot", {"cell": "rnn"}),
        ("embedding", {"layers": 2}),
        ("tied", {"cell": "gru"}),
        ("embedding", {"cell": "gru", "gru_reset": "before"}),
    ],
)
def test_steps_are_the_whole_sequence(entry: str, shape: dict[str, Any]) -> None:
    model, params = language_model(**shape, **ENTRIES[entry])
    step = reloaded(interop.export_step(model, params))
    for batch in (1, 3):
        tokens = ids(batch, 4, batch)
        carry = jax.tree.leaves(model.zero_carry(params, batch))
        logits = []
        for token in tokens:
            *carry, last = step.call(*carry, token)
            logits.append(last)
        final, expected = model.apply(params, None, jnp.asarray(tokens))
        assert_near(jnp.stack(logits), expected, 1e-5)
        assert_near(carry, jax.tree.leaves(final), 1e-5)


def test_float64_stays_float64(float64: None) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=H), V)
    params = model.init(random.key(0), jnp.float64)
    step = reloaded(interop.export_step(model, params))
    carry = model.zero_carry(params, 2)
    found = step.call(*jax.tree.leaves(carry), ids(0, 2))
    expected_carry, hidden = model.step(params, carry, jnp.asarray(ids(0, 2)))
    expected = [*jax.tree.leaves(expected_carry), model.logits(params, hidden)]
    assert found[-1].dtype == jnp.float64
    assert_near(list(found), expected, 1e-14)


@pytest.mark.parametrize(
    "options",
    [{"layers": 2}, pytest.param({"cell": "gru", **ENTRIES["tied"]}, marks=pytest.mark.slow)],
)
def test_samples_are_generates(options: dict[str, Any]) -> None:
    model, params = language_model(**options)
    sampler = reloaded(interop.export_sampler(model, params, 9, forbidden=[2, 7]))
    key = random.key(5)
    for lengths, temperature, top_n in (((4, 4), 0.9, 0), ((1, 5, 3), 1.3, 4), ((0, 2), 0.0, 0)):
        prompts = [ids(row, length) for row, length in enumerate(lengths)]
        padded = np.full((max(lengths), len(lengths)), FREE, np.int32)
        for row, prompt in enumerate(prompts):
            padded[padded.shape[0] - len(prompt) :, row] = prompt
        found = sampler.call(padded, random.key_data(key), np.float32(temperature), np.int32(top_n))
        template, ends = stack_rows([np.append(p, [FREE] * 9) for p in prompts])
        texts = generate(
            model, params, template, key=key, lengths=ends,
            temperature=temperature, top_n=top_n, forbidden=[2, 7],
        )  # fmt: skip
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(found[:, row], texts.row(row)[length:])
        assert not np.isin(found, [2, 7]).any()


def test_the_key_data_of_a_small_seed_is_a_pair() -> None:
    np.testing.assert_array_equal(random.key_data(random.key(5)), [0, 5])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "pooling": "max"},
        {"cell": "gru", "layers": 2, "pooling": "mean", "dense_size": 0},
        {"frozen_embedding": True},
    ],
    ids=["max", "mean", "frozen"],
)
def test_probabilities_are_the_classifiers(options: dict[str, Any]) -> None:
    model, params = classifier(**options)
    if model.config.frozen_embedding:
        params = params._replace(vectors=random.normal(random.key(1), (V, 5)))
    exported = reloaded(interop.export_classifier(model, params))
    for times, batch in ((5, 3), (2, 1)):
        tokens, mask = ids(0, times, batch), np.arange(times)[:, None] < np.array([2, 5, 0])[:batch]
        logits = model.logits(params, jnp.asarray(tokens), mask=jnp.asarray(mask))
        assert_near(exported.call(tokens, mask), jax.nn.sigmoid(logits), 1e-6)


ELSEWHERE = """
import sys

# As if none of these were installed.
for name in ("lstm_jax", "flax", "optax", "orbax", "safetensors", "torch", "keras"):
    sys.modules[name] = None

import jax, jax.export
import numpy as np

def load(name):
    with open(name + ".bin", "rb") as file:
        return jax.export.deserialize(bytearray(file.read()))

given = np.load("given.npz")
zeros = np.zeros((3, 6), np.float32)
key_data = np.array([0, 5], np.uint32)
*carry, logits = load("step").call(zeros, zeros, given["tokens"][0])
one = load("step").call(zeros[:1], zeros[:1], given["tokens"][0, :1])[-1]
assert abs(one - logits[:1]).max() < 1e-6  # the batch is symbolic
sampled = load("sampler").call(given["tokens"], key_data, np.float32(0.8), np.int32(3))
probability = load("classifier").call(given["tokens"], given["mask"])
np.savez("found.npz", h=carry[0], c=carry[1], logits=logits, sampled=sampled, p=probability)
"""


@pytest.mark.slow
def test_saved_artefacts_run_in_a_process_that_has_jax_and_numpy_alone(tmp_path: Path) -> None:
    model, params = language_model()
    judge, judge_params = classifier()
    tokens, mask = ids(0, 5, 3), np.arange(5)[:, None] >= np.array([0, 3, 5])
    np.savez(tmp_path / "given.npz", tokens=tokens, mask=mask)
    for name, exported in (
        ("step", interop.export_step(model, params)),
        ("sampler", interop.export_sampler(model, params, 8)),
        ("classifier", interop.export_classifier(judge, judge_params)),
    ):
        path = tmp_path / f"{name}.bin"
        assert interop.save_exported(path, exported) == path.stat().st_size
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    (carry,), hidden = model.step(params, model.zero_carry(params, 3), jnp.asarray(tokens[0]))
    expected = (carry.h, carry.c, model.logits(params, hidden))
    assert_near(tuple(found[name] for name in ("h", "c", "logits")), expected, 1e-6)
    template = np.concatenate([tokens, np.full((8, 3), FREE)])
    texts = generate(model, params, template, key=random.key(5), temperature=0.8, top_n=3)
    np.testing.assert_array_equal(found["sampled"], texts.tokens[5:])
    logits = judge.logits(judge_params, jnp.asarray(tokens), mask=jnp.asarray(mask))
    assert_near(found["p"], np.asarray(jax.nn.sigmoid(logits)), 1e-6)


@pytest.mark.slow
def test_one_artefact_serves_several_platforms() -> None:
    model, params = language_model()
    platforms = ("cpu", "cuda", "tpu")
    step = interop.export_step(model, params, platforms=platforms)
    sampler = interop.export_sampler(model, params, 2, platforms=platforms)
    judge = interop.export_classifier(*classifier(), platforms=platforms)
    assert step.platforms == sampler.platforms == judge.platforms == platforms
    assert interop.export_step(model, params).platforms == ("cpu",)
    carry = model.zero_carry(params, 2)
    found = reloaded(step).call(*jax.tree.leaves(carry), ids(0, 2))[-1]
    hidden = model.step(params, carry, jnp.asarray(ids(0, 2)))[1]
    assert_near(found, model.logits(params, hidden), 1e-6)


def test_signatures_are_readable() -> None:
    model, params = language_model()
    step = interop.export_step(model, params)
    arguments, results = interop.signature(step).split(" -> ")
    assert arguments == "(float32[b,6], float32[b,6], int32[b])"
    assert results == "(float32[b,6], float32[b,6], float32[b,11])"


def test_what_cannot_be_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = language_model()
    both, both_params = language_model(bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        interop.export_step(both, both_params)
    with pytest.raises(ValueError, match="bidirectional"):
        interop.export_sampler(both, both_params, 4)
    with pytest.raises(ValueError, match="places is 0"):
        interop.export_sampler(model, params, 0)
    with pytest.raises(ValueError, match="platform is 'gpu'; choose from cpu, cuda"):
        interop.export_step(model, params, platforms=["gpu"])
    step = interop.export_step(model, params)
    for name in [name for name in sys.modules if name.startswith("jax._src.export.serialization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(jax._src.export, "serialization", raising=False)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match=r"pip install 'lstm-jax\[interop\]'"):
        interop.save_exported(tmp_path / "step.bin", step)
    assert not list(tmp_path.iterdir())


SMALL = shlex.split(
    "--model.hidden-size 6 --batch-size 4 --log-every 1 --evaluate-every 0 --checkpoint-every 0"
)
Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [PROG, *map(str, arguments)])
        capsys.readouterr()
        code = main()
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: a word model with an unknown word, and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40 + "once", encoding="utf-8")
    reviews = folder / "reviews.tsv"
    lines = ["review\tlabel", *(["good film\t1", "bad film\t0"] * 12)]
    reviews.write_text("\n".join(lines), encoding="utf-8")
    words = shlex.split("--sequence-length 8 --steps 2 --sample-every 0")
    for arguments in (
        ["shakespeare", "--data", text, "--run-dir", folder / "words", *words],
        ["reviews", "--data", reviews, "--run-dir", folder / "reviews", "--epochs", 1],
    ):
        assert train_command([*map(str, arguments), *SMALL]) == 0
    return folder


def loaded(path: Path) -> Any:
    return jax.export.deserialize(bytearray(path.read_bytes()))


@pytest.mark.slow
def test_runs_become_artefacts(call: Command, runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    code, out, err = call("export", runs / "words", target, "--platforms", "cpu", "cuda")
    assert (code, err) == (0, "")
    assert f"wrote {target.stat().st_size:,} bytes for cpu, cuda: {target}\nstep: (float32" in out
    model, params, vocabulary, _ = lstm_jax.load(runs / "words")
    carry = model.zero_carry(params, 2)
    token = np.zeros(2, np.int32)
    hidden = model.step(params, carry, jnp.asarray(token))[1]
    found = loaded(target).call(*jax.tree.leaves(carry), token)[-1]
    assert_near(found, model.logits(params, hidden), 1e-6)

    sampler = ("export", runs / "words", target, "--what", "sampler", "--places", 60)
    assert call(*sampler, "--overwrite")[0] == 0
    prompt = np.array([[0], [1]], np.int32)
    written = loaded(target).call(prompt, np.array([0, 1], np.uint32), np.float32(9), np.int32(0))
    assert written.shape == (60, 1)
    assert vocabulary.unknown is not None
    assert vocabulary.unknown not in np.asarray(written)

    judge = ("export", runs / "reviews", target, "--what", "classifier", "--overwrite")
    assert call(*judge, "--step", "newest")[0] == 0
    classifier, weights, *_ = lstm_jax.load(runs / "reviews", step="newest")
    tokens = np.array([[1, 2], [2, 0]], np.int32)
    mask = np.array([[True, True], [True, False]])
    logits = classifier.logits(weights, jnp.asarray(tokens), mask=jnp.asarray(mask))
    assert_near(loaded(target).call(tokens, mask), jax.nn.sigmoid(logits), 1e-6)


def test_what_the_user_can_mend_is_one_line_and_writes_nothing(
    call: Command, runs: Path, tmp_path: Path
) -> None:
    target, there = tmp_path / "a.bin", tmp_path / "there.bin"
    there.write_bytes(b"mine")
    for arguments, message in (
        ((runs / "words",), "see lstm-jax export --help"),
        ((runs / "words", target, "--what", "hidden"), "--what"),
        ((runs / "words", target, "--platforms", "gpu"), "--platforms"),
        ((runs / "words", target, "--what", "sampler", "--places", 0), "places is 0"),
        ((runs / "words", target, "--step", 7), "no checkpoint of step 7"),
        ((runs / "words", target, "--step", -1), "step is -1"),
        ((runs / "words", there), "is there already; name another, or use --overwrite"),
        ((runs / "words", tmp_path), "is a folder"),
        ((runs / "words", tmp_path / "no" / "a.bin"), "there is no folder"),
        ((runs / "words", target, "--what", "classifier"), "holds a LanguageModel"),
        ((runs / "reviews", target), "holds a Classifier"),
        ((tmp_path, target), "is not a run folder"),
    ):
        code, out, err = call("export", *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith(f"{PROG} export: error: "), err
        assert message in err
        assert err.count("\n") == 1
        assert not target.exists()
    assert there.read_bytes() == b"mine"
