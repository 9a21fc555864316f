"""`train.py` and `sample.py` as a user types them: what they write, and how they refuse."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Command, snapshot

import lstm_jax
from lstm_jax.cli.sample import sample_command
from lstm_jax.cli.train import train_command
from lstm_jax.sampling import score
from lstm_jax.systems import downloads
from lstm_jax.training.log import read_rows

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{n} bottles of milk in row {n % 7} of the wall.\n" for n in range(400))
SMALL = shlex.split(
    "--model.hidden-size 16 --batch-size 4 --sequence-length 20 --steps 12 --log-every 4 "
    "--evaluate-every 6 --checkpoint-every 6 --sample-every 12 --sample.length 30"
)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train_command(["--data", str(text_file), "--run-dir", str(run), *SMALL]) == 0
    return run


def test_a_run_folder_holds_what_is_promised(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "vocab.json", "metrics.jsonl", "checkpoints", "curves.png"} <= names
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"6", "12"}
    assert [row["step"] for row in read_rows(trained / "metrics.jsonl")] == [4, 6, 8, 12]
    config = json.loads((trained / "config.json").read_text())["config"]
    assert (config["model"]["hidden_size"], config["steps"]) == (16, 12)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_shows_numbers_samples_and_where_it_saved(
    call: Command, text_file: Path, tmp_path: Path
) -> None:
    code, out, _ = call(
        train_command, "--data", text_file, "--run-dir", tmp_path / "run", *SMALL,
        "--sample-prompts", "7 bottles",
    )  # fmt: skip
    assert code == 0
    assert "step 12/12" in out
    assert "held out" in out
    assert "7 bottles" in out
    assert f"saved step 12 in {tmp_path / 'run'}" in out


def test_sampling_writes_the_text_alone(call: Command, trained: Path) -> None:
    options = (trained, "--prompt", "3 bottles", "--length", 40, "--seed", 3)
    code, out, err = call(sample_command, *options)
    assert code == 0
    assert out.startswith("3 bottles")
    assert len(out) == len("3 bottles") + 40 + 1
    assert "tokens/s" in err
    assert call(sample_command, *options)[1] == out
    assert call(sample_command, *options, "--seed", 4)[1] != out
    greedy = call(sample_command, *options, "--greedy")[1]
    assert call(sample_command, *options, "--temperature", 0)[1] == greedy
    assert call(sample_command, *options, "--top-n", 1)[1] == greedy


def test_each_text_of_a_batch_has_draws_of_its_own(call: Command, trained: Path) -> None:
    options = (trained, "--prompt", "3 ", "--length", 40)
    one = call(sample_command, *options)[1]
    many = call(sample_command, *options, "--batch", 3)[1]
    assert many.startswith(one)
    assert len(many) == 3 * len(one)


def test_an_older_checkpoint_can_be_sampled(call: Command, trained: Path) -> None:
    options = (trained, "--prompt", "3 ", "--length", 60)
    old, new = (call(sample_command, *options, "--step", step)[1] for step in (6, 12))
    assert old != new
    assert call(sample_command, *options)[1] == new


def test_eval_only_prints_the_held_out_loss(call: Command, trained: Path) -> None:
    before = snapshot(trained)
    code, out, _ = call(train_command, "--run-dir", trained, "--eval-only")
    assert code == 0
    found = json.loads(out)
    last = read_rows(trained / "metrics.jsonl")[-1]
    assert found["heldout_loss"] == pytest.approx(last["heldout_loss"], rel=1e-6)
    assert found["step"] == 12
    assert snapshot(trained) == before


def test_the_loop_eval_only_and_score_give_one_held_out_loss(call: Command, trained: Path) -> None:
    """Of each held-out lane, as what goes on from the text before it."""
    model, params, vocabulary, _ = lstm_jax.load(trained)
    times, held = 20, round(0.05 * len(TEXT))
    bounds = len(TEXT) - held + np.arange(5) * held // 4
    ids = vocabulary.encode(TEXT)
    lanes = [ids[first:last] for first, last in itertools.pairwise(bounds)]
    contexts = [ids[first - times - 1 : first] for first in bounds[:-1]]
    found = score(model, params, lanes, contexts=contexts)
    loss = -sum(each.log_likelihood for each in found) / held
    logged = read_rows(trained / "metrics.jsonl")[-1]["heldout_loss"]
    printed = json.loads(call(train_command, "--run-dir", trained, "--eval-only")[1])
    assert loss == pytest.approx(logged, rel=1e-5)
    assert printed["heldout_loss"] == pytest.approx(logged, rel=1e-6)


def test_resume_takes_its_settings_from_the_run(
    call: Command, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert call(train_command, "--data", text_file, "--run-dir", run, *SMALL)[0] == 0
    code, out, _ = call(train_command, "--run-dir", run, "--resume", "--steps", 20)
    assert code == 0
    assert "resumed at step 12" in out
    assert read_rows(run / "metrics.jsonl")[-1]["step"] == 20
    code, out, _ = call(train_command, "--run-dir", run, "--resume")
    assert code == 0
    assert "saved step 20" in out


def test_the_default_preset_trains_on_python_s_own_documentation(
    call: Command, tmp_path: Path
) -> None:
    small = [*SMALL, "--steps", "2", "--sample-every", "0"]
    assert call(train_command, "--run-dir", tmp_path / "run", *small)[0] == 0
    text = (tmp_path / "run" / "corpus.txt").read_text(encoding="utf-8")
    assert "statement" in text
    (tmp_path / "run" / "corpus.txt").write_text(text[:-100], encoding="utf-8")
    code, _, err = call(train_command, "--run-dir", tmp_path / "run", "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "SHA-256" in err


def test_a_word_model_trains_and_writes_words(
    call: Command, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--tokens", "word", "--min-count", "2", "--model.embedding-size", "8"]
    code, _, err = call(
        train_command, "--data", text_file, "--run-dir", run, *SMALL, *words,
        "--sample-prompts", "bottles of",
    )  # fmt: skip
    assert (code, err) == (0, "")
    out = call(sample_command, run, "--prompt", "bottles of", "--length", 5)[1]
    assert len(out.split()) == 7


BAD_TRAINING = {
    "missing file": (["--data", "{tmp}/none.txt"], "none.txt"),
    "a directory": (["--data", "{tmp}"], "{tmp}"),
    "empty file": (["--data", "{tmp}/empty.txt"], "empty"),
    "invalid UTF-8": (["--data", "{tmp}/latin1.txt"], "UTF-8"),
    "a binary file": (["--data", "{tmp}/binary.bin"], "binary.bin"),
    "shorter than a batch": (["--data", "{tmp}/short.txt"], "smaller batch size"),
    "prompt outside the vocabulary": (["--sample-prompts", "Ω"], "U+03A9"),
    "empty prompt": (["--sample-prompts", ""], "empty prompt"),
    "zero": (["--batch-size", "0"], "batch_size is 0"),
    "negative": (["--steps", "-5"], "steps is -5"),
    "NaN": (["--optimizer.learning-rate", "nan"], "learning_rate is nan"),
    "not a number": (["--epochs", "many"], "--epochs"),
    "an unknown flag": (["--epochz", "3"], "--epochz"),
    "an unknown choice": (["--model.cell", "elman"], "elman"),
    "a flag without its value": (["--epochs"], "--epochs"),
    "too many devices": (["--devices", "64"], "devices is 64"),
    "a batch that does not divide": (["--devices", "2", "--batch-size", "3"], "multiple"),
    "resume of nothing": (["--resume"], "not a run folder"),
    "evaluation of nothing": (["--eval-only"], "not a run folder"),
}


@pytest.mark.parametrize("case", BAD_TRAINING, ids=str)
def test_bad_input_is_one_line_and_changes_nothing(
    case: str, call: Command, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1") * 99)
    (tmp_path / "binary.bin").write_bytes(b"\x00\x01\x02" * 999)
    (tmp_path / "short.txt").write_text("too short for one batch of text. ")
    before = snapshot(tmp_path)
    arguments, said = BAD_TRAINING[case]
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    base = ["--data", text_file, "--run-dir", tmp_path / "run", *SMALL]
    code, out, err = call(train_command, *base, *arguments)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("command: error: ")
    assert said.format(tmp=tmp_path) in err
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--resume"),  # the folder exists
        (["--resume", "--model.hidden-size", "32"], "model.hidden_size is 32, the run has 16"),
        (["--resume", "--tokens", "word"], "tokens is 'word', the run has 'char'"),
        (["--resume", "--batch-size", "8"], "batch_size"),
        (["--resume", "--seed", "5"], "seed"),
        (["--resume", "--data", "{tmp}/other.txt"], "SHA-256"),
        (["anna", "--resume"], "preset 'docs', not 'anna'"),
    ],
)
def test_what_cannot_be_resumed_is_refused_by_name(
    arguments: list[str], said: str, call: Command, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text(TEXT.replace("milk", "mild"), encoding="utf-8")
    before = snapshot(trained)
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    code, _, err = call(train_command, *arguments, "--run-dir", trained)
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert snapshot(trained) == before


def test_a_second_process_is_refused_and_a_dead_one_s_lock_is_not_in_the_way(
    call: Command, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from lstm_jax.training.run import RunFolder, held\n"
        "with held(RunFolder(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        code, _, err = call(train_command, "--data", text_file, "--run-dir", run, *SMALL)
        assert (code, err.count("\n")) == (2, 1)
        assert "another process is training in" in err
        assert not (run / "config.json").exists()
        other.kill()
    assert (run / ".lock").exists()
    assert call(train_command, "--data", text_file, "--run-dir", run, *SMALL)[0] == 0


@pytest.mark.parametrize("preset", ["poems", "lyrics"])
def test_a_preset_without_data_asks_for_it(preset: str, call: Command, tmp_path: Path) -> None:
    code, _, err = call(train_command, preset, "--run-dir", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "--data PATH" in err


def test_an_unknown_preset_is_one_line(call: Command, tmp_path: Path) -> None:
    code, _, err = call(train_command, "anne", "--run-dir", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "docs, anna" in err


@pytest.mark.parametrize(
    ("preset", "file"),
    [
        ("anna", "anna.txt"),
        ("shakespeare", "tinyshakespeare.txt"),
        ("reviews", "aclImdb_v1.tar.gz"),
    ],
)
def test_a_preset_s_own_data_without_a_network_says_where_to_put_it(
    preset: str, file: str, call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {
        name: source._replace(url=f"http://127.0.0.1:9/{source.file_name}")
        for name, source in downloads.SOURCES.items()
    }
    monkeypatch.setattr(downloads, "SOURCES", nowhere)
    monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "cache"))
    code, _, err = call(train_command, preset, "--run-dir", tmp_path / "run")
    assert code == 2
    told, error = err.splitlines()
    assert told.startswith("downloading")
    assert str(tmp_path / "cache" / file) in error
    assert "--data" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/none"], "not a run folder"),
        (["{run}", "--prompt", ""], "prompt is empty"),
        (["{run}", "--prompt", "Ωmega"], "U+03A9"),
        (["{run}", "--length", "0"], "length is 0"),
        (["{run}", "--top-n", "-1"], "top_n is -1"),
        (["{run}", "--temperature", "nan"], "temperature is nan"),
        (["{run}", "--temperature", "-1"], "temperature is -1"),
        (["{run}", "--batch", "0"], "batch is 0"),
        (["{run}", "--seed", "-1"], "seed is -1"),
        (["{run}", "--step", "7"], "6, 12"),
        (["{run}", "--top-p", "0"], "top_p is 0"),
        (["{run}", "--min-p", "2"], "min_p is 2"),
        (["{run}", "--repetition-penalty", "0"], "repetition_penalty is 0"),
        (["{run}", "--stop", ""], "stop text is empty"),
        (["{run}", "--template", "Ω**"], "template 'Ω'"),
        (["{run}", "--stream", "--jsonl"], "stream and jsonl"),
        (["{run}", "--stream", "--beams", "2"], "stream and beams"),
        (["{run}", "--prompt", "a", "--prompts", "{tmp}/lines"], "prompt and prompts"),
        (["{run}", "--beams", "2", "--batch", "3"], "raise beams"),
        (["{run}", "--best-of", "0"], "best_of is 0"),
        (["{run}", "--prompts", "{tmp}/none"], "does not exist"),
        (["{run}", "--prompts", "{tmp}/lines"], "line 3"),
        (["{run}", "--score", "{tmp}/lines"], "line 3: text 'Ωmega'"),
        (["{run}", "--score", "{tmp}/short"], "line 1 has a single token"),
        (["{tmp}/empty"], "no checkpoint"),
        (["{tmp}/torn"], "vocab.json"),
        (["{tmp}/torn-config"], "config.json"),
        ([], "PATH"),
    ],
)
def test_bad_sampling_is_one_line(
    arguments: list[str], said: str, call: Command, trained: Path, tmp_path: Path
) -> None:
    for name in ("empty", "torn", "torn-config"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "vocab.json"):
            (tmp_path / name / file).write_bytes((trained / file).read_bytes())
    (tmp_path / "torn" / "vocab.json").write_text('{"format": 1, "tok')
    (tmp_path / "lines").write_text("7 bottles\n\nΩmega\n", encoding="utf-8")
    (tmp_path / "short").write_text("b\n", encoding="utf-8")
    (tmp_path / "torn-config" / "config.json").write_text('{"format": 1, "conf')
    before = snapshot(tmp_path)
    arguments = [argument.format(tmp=tmp_path, run=trained) for argument in arguments]
    code, out, err = call(sample_command, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert snapshot(tmp_path) == before


def test_help_is_a_page_and_needs_no_accelerator(tmp_path: Path) -> None:
    for script in ("train.py", "sample.py"):
        done = subprocess.run(
            [sys.executable, ROOT / script, "--help"],
            env={**os.environ, "JAX_PLATFORMS": "none such"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 30
    assert list(tmp_path.iterdir()) == []


def test_a_profile_is_written(call: Command, text_file: Path, tmp_path: Path) -> None:
    base = ["--data", text_file, "--run-dir", tmp_path / "run", *SMALL]
    assert call(train_command, *base, "--profile", tmp_path / "trace")[0] == 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_tensorboard_events_are_written(call: Command, text_file: Path, tmp_path: Path) -> None:
    base = ["--data", text_file, "--run-dir", tmp_path / "run", *SMALL]
    assert call(train_command, *base, "--tensorboard")[0] == 0
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"heldout_loss" in content
    assert b"sample/" in content


def test_a_run_on_two_devices_is_the_run_on_one_and_can_go_on_there(
    call: Command, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    base = ["--data", text_file, "--run-dir", run, *SMALL]
    code, out, err = call(train_command, *base, "--devices", 2)
    assert (code, err) == (0, "")
    assert "2 x cpu" in out
    rows, alone = (read_rows(folder / "metrics.jsonl") for folder in (run, trained))
    for row, expected in zip(rows, alone, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert call(train_command, "--run-dir", run, "--resume", "--devices", 1, "--steps", 14)[0] == 0
    assert read_rows(run / "metrics.jsonl")[-1]["step"] == 14


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(run: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(read_rows(run / "metrics.jsonl")) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ["--steps", "400", "--checkpoint-every", "40", "--keep-checkpoints", "99"]


INTERRUPTED = """
import os, runpy, signal, sys
_, module, *sys.argv = sys.argv
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("train.py", "lstm_jax"),
        ("train.py", "orbax.checkpoint"),
        ("sample.py", "jax"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("train.py", "jax"),
                ("train.py", "tyro"),
                ("sample.py", "lstm_jax"),
                ("sample.py", "tyro"),
                ("sample.py", "orbax.checkpoint"),
            )
        ),
    ],
)
def test_ctrl_c_during_imports_is_quiet(script: str, module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module, ROOT / script, "no-such-run"]
    if script == "train.py":
        command[-1:] = ["--run-dir", "no-such-run", "--resume"]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_state_and_sets_the_exit_code(
    number: signal.Signals, text_file: Path, tmp_path: Path, call: Command
) -> None:
    run = tmp_path / "run"
    options = ["--data", text_file, "--run-dir", run, *SMALL, "--steps", 100_000]
    process = start(*options, "--checkpoint-every", 0, "--evaluate-every", 0)
    wait_for_rows(run, 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in out + err
    saved = [int(p.name) for p in (run / "checkpoints").iterdir()]
    assert f"saved step {saved[0]}" in out
    assert read_rows(run / "metrics.jsonl")[-1]["step"] >= saved[0] - 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [2, pytest.param(12, marks=pytest.mark.beyond_ci)],
    ids=lambda kills: f"{kills} kills",
)
def test_a_run_killed_at_random_moments_resumes_exactly(
    kills: int, text_file: Path, tmp_path: Path
) -> None:
    """SIGKILL between and during saves: same checkpoints, same rows as a run left alone."""
    base = ["--data", text_file, *SMALL, "--evaluate-every", "50", *LONG, "--sample-every", "0"]
    base += ["--model.dropout", "0.2", "--model.dropout-place", "outputs"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(*base, "--run-dir", whole)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    random = np.random.default_rng(kills)
    resume: list[str] = []
    for _ in range(kills):
        process = start(*base, "--run-dir", killed, *resume)
        before = len(read_rows(killed / "metrics.jsonl"))
        if process.poll() is None and before < 95:
            wait_for_rows(killed, min(before + int(random.integers(1, 30)), 95), process)
            time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        has_checkpoint = any(p.name.isdigit() for p in (killed / "checkpoints").glob("*"))
        if has_checkpoint:
            resume = ["--resume"]
        else:
            subprocess.run(["rm", "-r", killed], check=True)
    process = start(*base, "--run-dir", killed, *resume)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_same_runs(whole, killed)


def assert_same_runs(one: Path, other: Path) -> None:
    from lstm_jax.systems import read_system
    from lstm_jax.training.checkpoint import CheckpointStore
    from lstm_jax.training.run import RunFolder, read_description
    from lstm_jax.training.task import make_task, restored_state

    folders = [RunFolder(one), RunFolder(other)]
    task = make_task(read_system(read_description(folders[0]).config, one))
    states = []
    for folder in folders:
        with CheckpointStore(folder.checkpoints, read_only=True) as store:
            states.append(restored_state(task, store)[0])
    import jax

    assert int(states[0].step) == 400
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    timings = ("seconds", "tokens_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in timings} for row in read_rows(folder.metrics)]
        for folder in folders
    ]
    assert rows[0] == rows[1]


def test_ten_lines_of_other_code_use_a_trained_model(trained: Path, text_file: Path) -> None:
    script = f"""
import sys
import jax.numpy as jnp
import lstm_jax
model, params, vocabulary, _ = lstm_jax.load({str(trained)!r})
ids = jnp.asarray(vocabulary.encode("7 bottles of milk"))[:, None]
sums, _ = model.token_sums(params, None, ids[:-1], ids[1:])
print(float(sums.loss / sums.weight))
assert "torch" not in sys.modules
"""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=2", "").strip()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 10
