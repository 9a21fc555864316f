"""`lstm-jax convert` and `export`: runs and files into files, and how they refuse."""

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits
from interop_cases import Command, draw_layers, normal

import lstm_jax
from lstm_jax import interop
from lstm_jax.cli import convert
from lstm_jax.cli.main import COMMANDS, PROG
from lstm_jax.sampling import FREE, generate

pytest.importorskip("safetensors", reason="safetensors, an optional extra, is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers, an optional extra, is not installed")


def test_a_run_goes_through_both_layouts_and_comes_back_bit_for_bit(
    call: Command, runs: Path, tmp_path: Path
) -> None:
    one, two, three, four, wrapped = (tmp_path / f"{n}.safetensors" for n in "12345")
    for words in (
        ("convert", runs / "words", one, "--rnn", "lstm"),
        ("convert", one, two, "--rnn", "lstm"),
        ("convert", runs / "words", three, "--to", "plain", "--step", "2"),
        ("convert", two, four, "--rnn", "lstm"),
    ):
        assert call(*words)[0] == 0
    arrays, params = interop.load_arrays(one), lstm_jax.load(runs / "words").params
    assert_same_bits(interop.load_arrays(four), arrays)
    # What training wraps is converted as if it did not.
    interop.save_safetensors(wrapped, {f"module._orig_mod.{n}": a for n, a in arrays.items()})
    for options in ((), ("--decoder", "module._orig_mod.decoder")):
        assert call("convert", wrapped, four, "--rnn", "lstm", "--overwrite", *options)[0] == 0
        for path in (two, three, four):
            assert_same_bits(interop.language_model_from_plain(interop.load_arrays(path)), params)


def test_layers_of_a_file_become_plain_names_and_come_back(call: Command, tmp_path: Path) -> None:
    drawn = draw_layers("gru_after", 2, True, 3, 4)
    source, plain, back = (tmp_path / f"{n}.safetensors" for n in ("source", "plain", "back"))
    whole = interop.layers_to_pytorch(drawn, "lm.rnn.") | {"lm.norm.weight": normal(0, 3)}
    interop.save_safetensors(source, whole)
    assert call("convert", source, plain, "--prefix", "lm.rnn.")[0] == 0
    assert_same_bits(interop.layers_from_plain(interop.load_arrays(plain)), drawn)
    code, out, _ = call("convert", plain, back)
    assert code == 0
    assert f"wrote {len(interop.load_arrays(back))} arrays" in out
    assert_same_bits(interop.load_arrays(back), interop.layers_to_pytorch(drawn))


def test_settings_that_no_layout_has_are_told_with_their_values(
    call: Command, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lstm_jax.load(runs / "words")
    told = {"recurrent_dropout_kind": "zoneout", "recurrent_dropout": 0.1, "zoneout_cell": 0.5}
    model = replace(run.model, config=replace(run.model.config, activation="relu", **told))
    monkeypatch.setattr(convert, "load", lambda *_, **options: run._replace(model=model))
    _, out, _ = call("convert", runs / "words", tmp_path / "a.safetensors")
    expected = ", ".join(f"{name} {value}" for name, value in told.items())
    assert out.endswith(f"tell what runs them of the run's activation relu, {expected}\n")


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
zeros = np.zeros((2, 6), np.float32)
key_data = np.array([0, 5], np.uint32)
*carry, logits = load("step").call(zeros, zeros, given["tokens"][0])
sampled = load("sampler").call(given["tokens"], key_data, np.float32(9), np.int32(0))
probability = load("classifier").call(given["tokens"], given["mask"])
np.savez("found.npz", h=carry[0], c=carry[1], logits=logits, sampled=sampled, p=probability)
"""


@pytest.mark.slow
def test_runs_become_artefacts_for_processes_that_have_jax_and_numpy_alone(
    call: Command, runs: Path, tmp_path: Path
) -> None:
    tokens = np.array([[1, 2], [2, 0]], np.int32)
    mask = np.array([[True, True], [True, False]])
    np.savez(tmp_path / "given.npz", tokens=tokens, mask=mask)
    for what, run, options in (
        ("step", "words", ()),
        ("sampler", "words", ("--places", 60)),
        ("classifier", "reviews", ("--step", "newest")),
    ):
        target = tmp_path / f"{what}.bin"
        options = ("--what", what, "--platforms", "cpu", "cuda", *options)
        code, out, err = call("export", runs / run, target, *options)
        assert (code, err) == (0, "")
        assert f"wrote {target.stat().st_size:,} bytes for cpu, cuda: {target}\n{what}: (" in out
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)

    model, params, vocabulary, _ = lstm_jax.load(runs / "words")
    (carry,), hidden = model.step(params, model.zero_carry(params, 2), jnp.asarray(tokens[0]))
    expected = (carry.h, carry.c, model.logits(params, hidden))
    assert_near(tuple(found[name] for name in ("h", "c", "logits")), expected, 1e-5)
    template = np.concatenate([tokens, np.full((60, 2), FREE)])
    key, unknown = jax.random.key(5), vocabulary.unknown
    texts = generate(model, params, template, key=key, temperature=9.0, forbidden=[unknown])
    np.testing.assert_array_equal(found["sampled"], texts.tokens[2:])
    assert unknown not in found["sampled"]
    classifier, weights, *_ = lstm_jax.load(runs / "reviews", step="newest")
    logits = classifier.logits(weights, jnp.asarray(tokens), mask=jnp.asarray(mask))
    assert_near(found["p"], jax.nn.sigmoid(logits), 1e-6)


def test_what_the_user_can_mend_is_one_line_and_writes_nothing(
    call: Command, runs: Path, tmp_path: Path
) -> None:
    words, reviews, nowhere = runs / "words", runs / "reviews", tmp_path / "no" / "a.safetensors"
    target, there = tmp_path / "a.safetensors", tmp_path / "there.safetensors"
    before = draw_layers("gru_before", 1, False, 3, 4)
    interop.save_safetensors(there, interop.layers_to_plain(before))
    content = there.read_bytes()
    for arguments, message in (
        (
            ("convret", words, target),
            "the command is 'convret'; choose one of train, sample, classify, convert",
        ),
        (("convert", words), "see lstm-jax convert --help"),
        (("convert", words, tmp_path / "a.pt"), "must end with .safetensors"),
        (("convert", words, nowhere), "there is no folder"),
        (("convert", words, there), "is there already; name another, or use --overwrite"),
        (("convert", words, target, "--step", 7), "no checkpoint of step 7"),
        (("convert", words, target, "--step", -1), "step is -1"),
        (("convert", words, target, "--prefix", "rnn."), "a run has no prefix"),
        (("convert", tmp_path, target), str(tmp_path)),
        (("convert", tmp_path / "none.safetensors", target), "none.safetensors"),
        (("convert", there, target), "no counterpart in PyTorch"),
        (("convert", there, target, "--step", "best"), "has no steps"),
        (("convert", there, target, "--prefix", "rnn."), "has plain names, no prefix"),
        (("export", words), "see lstm-jax export --help"),
        (("export", words, target, "--what", "hidden"), "--what"),
        (("export", words, target, "--platforms", "gpu"), "--platforms"),
        (("export", words, target, "--what", "sampler", "--places", 0), "places is 0"),
        (("export", words, target, "--step", 7), "no checkpoint of step 7"),
        (("export", words, target, "--step", -1), "step is -1"),
        (("export", words, there), "is there already; name another, or use --overwrite"),
        (("export", words, tmp_path), "is a folder"),
        (("export", words, nowhere), "there is no folder"),
        (("export", words, target, "--what", "classifier"), "holds a LanguageModel"),
        (("export", reviews, target), "holds a Classifier"),
        (("export", tmp_path, target), "is not a run folder"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert re.match(rf"{PROG}( convert| export)?: error: ", err), err
        assert message in err
        assert err.count("\n") == 1
        assert not target.exists()
    assert there.read_bytes() == content
    assert call("convert", there, there, "--to", "plain", "--overwrite")[0] == 0
    assert_same_bits(interop.layers_from_plain(interop.load_arrays(there)), before)


def test_the_package_is_a_command_and_help_names_its_own(
    call: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert out.startswith(f"usage: {PROG} COMMAND ...; see {PROG} COMMAND --help\n")
    assert re.findall(r"^  (\w+) ", out, re.MULTILINE) == list(COMMANDS)
    with pytest.raises(SystemExit) as exit:
        call("convert", "--help")
    assert exit.value.code == 0
    assert "--identity-encoder" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [PROG, "convert", "none.pt", "none.safetensors"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("lstm_jax", run_name="__main__")
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(f"{PROG} convert: error: ")
