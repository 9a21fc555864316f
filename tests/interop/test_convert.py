"""`python -m lstm_jax convert`: runs and files into files, and how it refuses."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from interop_cases import assert_near, assert_same_bits, draw_layers, normal

import lstm_jax
from lstm_jax import interop
from lstm_jax.cli.main import COMMANDS, PROG, main, train_command

pytest.importorskip("safetensors", reason="safetensors, an optional extra, is not installed")

SMALL = shlex.split(
    "--model.hidden-size 6 --batch-size 4 --sequence-length 8 --steps 2 --log-every 1 "
    "--evaluate-every 0 --checkpoint-every 0 --sample-every 0 --model.embedding-size 5"
)
Outcome = tuple[int, str, str]
Convert = Callable[..., Outcome]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Convert:
    def convert(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [PROG, *map(str, arguments)])
        capsys.readouterr()
        code = main()
        return code, *capsys.readouterr()

    return convert


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40, encoding="utf-8")
    assert train_command(["--data", str(text), "--run-dir", str(folder / "run"), *SMALL]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_becomes_a_model_that_pytorch_loads_and_runs(
    convert: Convert, trained: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    target = tmp_path / "model.safetensors"
    code, out, err = convert("convert", trained, target)
    assert (code, err) == (0, "")
    assert "in the pytorch layout" in out
    model, params, vocabulary, _ = lstm_jax.load(trained)
    state = {name: torch.from_numpy(a) for name, a in interop.load_arrays(target).items()}
    encoder, rnn = torch.nn.Embedding(len(vocabulary), 5), torch.nn.LSTM(5, 6)
    decoder = torch.nn.Linear(6, len(vocabulary))
    for name, module in (("encoder", encoder), ("rnn", rnn), ("decoder", decoder)):
        own = {n.removeprefix(f"{name}."): t for n, t in state.items() if n.startswith(name)}
        module.load_state_dict(own, strict=True)
    tokens = np.random.default_rng(0).integers(0, len(vocabulary), (7, 2))
    with torch.no_grad():
        expected = decoder(rnn(encoder(torch.from_numpy(tokens)))[0]).numpy()
    assert_near(np.asarray(model.apply(params, None, tokens)[1]), expected, 1e-6)


def test_a_run_goes_through_both_layouts_and_comes_back_bit_for_bit(
    convert: Convert, trained: Path, tmp_path: Path
) -> None:
    one, two, three = (tmp_path / f"{n}.safetensors" for n in "123")
    assert convert("convert", trained, one, "--rnn", "lstm")[0] == 0
    assert convert("convert", one, two, "--rnn", "lstm")[0] == 0
    assert convert("convert", trained, three, "--to", "plain", "--step", "2")[0] == 0
    params = lstm_jax.load(trained).params
    for path in (two, three):
        assert_same_bits(interop.language_model_from_plain(interop.load_arrays(path)), params)
    back = tmp_path / "4.safetensors"
    assert convert("convert", two, back, "--rnn", "lstm")[0] == 0
    assert_same_bits(interop.load_arrays(back), interop.load_arrays(one))


def test_layers_of_a_file_become_plain_names_and_come_back(
    convert: Convert, tmp_path: Path
) -> None:
    drawn = draw_layers("gru_after", 2, True, 3, 4)
    source, plain, back = (tmp_path / f"{n}.safetensors" for n in ("source", "plain", "back"))
    whole = interop.layers_to_pytorch(drawn, "lm.rnn.") | {"lm.norm.weight": normal(0, 3)}
    interop.save_safetensors(source, whole)
    assert convert("convert", source, plain, "--prefix", "lm.rnn.")[0] == 0
    assert_same_bits(interop.layers_from_plain(interop.load_arrays(plain)), drawn)
    code, out, _ = convert("convert", plain, back)
    assert code == 0
    assert f"wrote {len(interop.load_arrays(back))} arrays" in out
    assert_same_bits(interop.load_arrays(back), interop.layers_to_pytorch(drawn))


@pytest.mark.slow
def test_pytorch_s_own_file_becomes_plain_names(convert: Convert, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    module = torch.nn.LSTM(3, 4, bias=False)
    torch.save(module.state_dict(), tmp_path / "lstm.pt")
    target = tmp_path / "plain.safetensors"
    assert convert("convert", tmp_path / "lstm.pt", target)[0] == 0
    expected = interop.layers_from_pytorch(module.state_dict())
    assert_same_bits(interop.layers_from_plain(interop.load_arrays(target)), expected)


def test_what_training_wraps_is_converted_as_if_it_did_not(
    convert: Convert, trained: Path, tmp_path: Path
) -> None:
    one, two, three = (tmp_path / f"{n}.safetensors" for n in "123")
    assert convert("convert", trained, one)[0] == 0
    arrays = interop.load_arrays(one)
    interop.save_safetensors(two, {f"module._orig_mod.{n}": a for n, a in arrays.items()})
    params = lstm_jax.load(trained).params
    for options in ((), ("--decoder", "module._orig_mod.decoder")):
        assert convert("convert", two, three, "--overwrite", *options)[0] == 0
        assert_same_bits(interop.language_model_from_plain(interop.load_arrays(three)), params)


def test_what_the_user_can_mend_is_one_line_and_writes_nothing(
    convert: Convert, trained: Path, tmp_path: Path
) -> None:
    target, there = tmp_path / "a.safetensors", tmp_path / "there.safetensors"
    before = draw_layers("gru_before", 1, False, 3, 4)
    interop.save_safetensors(there, interop.layers_to_plain(before))
    content = there.read_bytes()
    for arguments, message in (
        (
            ("convret", trained, target),
            "the command is 'convret'; choose one of train, sample, classify, convert",
        ),
        (("convert", trained), "see lstm-jax convert --help"),
        (("convert", trained, tmp_path / "a.pt"), "must end with .safetensors"),
        (("convert", trained, tmp_path / "no" / "a.safetensors"), "there is no folder"),
        (("convert", trained, there), "is there already; name another, or use --overwrite"),
        (("convert", trained, target, "--step", 7), "no checkpoint of step 7"),
        (("convert", trained, target, "--step", -1), "step is -1"),
        (("convert", trained, target, "--prefix", "rnn."), "a run has no prefix"),
        (("convert", tmp_path, target), str(tmp_path)),
        (("convert", tmp_path / "none.safetensors", target), "none.safetensors"),
        (("convert", there, target), "no counterpart in PyTorch"),
        (("convert", there, target, "--step", "best"), "has no steps"),
        (("convert", there, target, "--prefix", "rnn."), "has plain names, no prefix"),
    ):
        code, out, err = convert(*arguments)
        assert (code, out) == (2, ""), arguments
        assert re.match(rf"{PROG}( convert)?: error: ", err), err
        assert message in err
        assert err.count("\n") == 1
        assert not target.exists()
    assert there.read_bytes() == content
    assert convert("convert", there, there, "--to", "plain", "--overwrite")[0] == 0
    assert_same_bits(interop.layers_from_plain(interop.load_arrays(there)), before)


def test_the_package_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [PROG, "convert", "none.pt", "none.safetensors"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("lstm_jax", run_name="__main__")
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(f"{PROG} convert: error: ")


def test_help_names_the_command(convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = convert("--help")
    assert code == 0
    assert out.startswith(f"usage: {PROG} COMMAND ...; see {PROG} COMMAND --help\n")
    assert re.findall(r"^  (\w+) ", out, re.MULTILINE) == list(COMMANDS)
    with pytest.raises(SystemExit) as exit:
        convert("convert", "--help")
    assert exit.value.code == 0
    assert "--identity-encoder" in capsys.readouterr().out
