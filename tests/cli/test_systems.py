"""Each system from its own kind of data to its own kind of answer, in seconds."""

import io
import json
import re
import shlex
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, Refusal, classify_command, sample_command, train_command
from core_cases import cases

from lstm_jax.cells import CELLS
from lstm_jax.cli.train_options import read_arguments
from lstm_jax.systems import read_system
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import load

SONG = "我想带你 去看海 看海的天\n你说想要 风的声音 海的蓝\n" * 60
PLAY = "To be, or not to be: that is the question! Thou art more lovely and more temperate.\n" * 60
GOOD, BAD = ["wonderful", "moving", "great"], ["dull", "awful", "boring"]
MODEL = ["--model.hidden-size", "12", "--log-every", "1"]
SHORT = ["--batch-size", "4", "--sequence-length", "20", "--steps", "1"]
POEMS = shlex.split(
    "--batch-size 16 --epochs 6 --embedding-size 12 --widths 2 --model.dropout 0.1 "
    "--output-dropout 0.1 --learning-rate 0.02 --warmup-steps 5 --checkpoint-every 3 "
    "--sample-templates 春***月***"
)
REVIEWS = shlex.split(
    "--batch-size 32 --length 24 --epochs 12 --dense-size 8 --model.dropout 0.1 "
    "--learning-rate 0.02 --layers 1 --pooling max --dense-dropout 0"
)
ON_WORDS = f"--data {{}}/words.txt --min-count 1 --embedding-size 12 {' '.join(SHORT)}"
ON_TEXT = f"--data {{}}/play.txt {' '.join(SHORT)}"
PRESETS = {
    "docs": ON_TEXT,
    "anna": ON_TEXT,
    "shakespeare": ON_WORDS,
    "wordlm": ON_WORDS,
    "lyrics": ON_TEXT,
    "lyrics --bidirectional": ON_TEXT,
    "poems": "--data {}/poems.txt --steps 2 --batch-size 16 --embedding-size 12",
    "reviews": "--data {}/reviews.tsv --steps 2 --length 24 --dense-size 8",
}
SHAPES = (
    "--cell lstm", "--cell rnn --layers 2", "--cell gru --bidirectional",
    "--bidirectional --as-published",
)  # fmt: skip
Train = Callable[..., str]


@pytest.fixture
def train(call: Command) -> Train:
    def train(*arguments: object) -> str:
        code, out, err = call(train_command, *arguments, *MODEL)
        assert (code, err) == (0, "")
        return out

    return train


def poem_lines() -> list[str]:
    rng = np.random.default_rng(0)
    signs = "春夏秋冬花月山水风雪人天" * 7
    lines = ["空:", "一:春花秋月", "二:春花秋月"]
    for number in range(240):
        length, start = int(rng.integers(4, 60)), int(rng.integers(12))
        body = signs[start : start + length]
        lines.append(f"题{number}:{body[: length // 2]} {body[length // 2 :]}。")
    return lines


def labelled(number: int) -> list[tuple[int, str]]:
    """Reviews, each a positive or a negative word among others, with their labels."""
    rng = np.random.default_rng(number)
    found = []
    for row in range(number):
        words = [f"word{rng.integers(30)}" for _ in range(int(rng.integers(3, 30)))]
        words[int(rng.integers(len(words)))] = str(rng.choice(GOOD if row % 2 else BAD))
        found.append((row % 2, " ".join(words).capitalize() + ".<br /><br />Don't ask!"))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of every system."""
    folder = tmp_path_factory.mktemp("data")
    once = " ".join(f"once{n}" for n in range(200))
    rows = [f"{text}\t{'positive' if label else 'negative'}" for label, text in labelled(1200)]
    rng = np.random.default_rng(1)
    words = [*GOOD, *BAD, *(f"word{n}" for n in range(25)), "never"]
    vectors = [f"{word} " + " ".join(f"{x:.4f}" for x in rng.normal(size=7)) for word in words]
    for name, text in {
        "song.txt": SONG,
        "play.txt": "preface " * 960 + PLAY + once,
        "words.txt": "Часы пробили час, и мышь ушла. " * 80,
        "poems.txt": "\n".join(poem_lines()),
        "reviews.tsv": "\n".join(["text\tsentiment", *rows, ""]),
        "vectors.txt": "\n".join([*vectors, ""]),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def word_run(files: Path) -> Path:
    line = f"--data {files}/words.txt --run-dir {files}/words --tokens word --sample-every 1"
    more = ["--sequence-length", "10", "--sample.length", "4"]
    assert train_command([*line.split(), *SHORT, *MODEL, *more]) == 0
    return files / "words"


@pytest.fixture(scope="module")
def poem_run(files: Path) -> Path:
    line = f"poems --data {files}/poems.txt --run-dir {files}/poems"
    assert train_command([*line.split(), *POEMS, *MODEL]) == 0
    return files / "poems"


@pytest.fixture(scope="module")
def classifier(files: Path) -> Path:
    data = f"--data {files}/reviews.tsv --vectors {files}/vectors.txt --run-dir {files}/reviews"
    assert train_command(["reviews", *data.split(), *REVIEWS, *MODEL]) == 0
    return files / "reviews"


def config_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return found


@cases("shape", SHAPES, SHAPES[0])
def test_lyrics_of_every_shape(
    shape: str, train: Train, refusal: Refusal, call: Command, files: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = (
        f"lyrics --data {files}/song.txt --run-dir {run} --batch-size 4 --sequence-length 20 "
        f"--epochs 4 {shape} --characters 600 --sample-every 2 --sample.length 10 "
        "--sample-prompts 海的"
    )
    out = train(*line.split())
    assert "600 characters" in out
    rows = read_rows(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["perplexity"] < rows[0]["perplexity"]
    tokens = json.loads((run / "vocab.json").read_text())["tokens"]
    assert (" " in tokens, "\n" in tokens) == (True, False)  # line ends became spaces
    assert config_of(run)["config"]["carry_backward"] == ("--as-published" in shape)
    options = [run, "--prompt", "海的", "--length", 12, "--greedy"]
    if "--bidirectional" in shape:
        assert "cannot write" in out
        err = refusal(sample_command, *options)
        assert "bidirectional" in err and "--force" in err
        options.append("--force")
    else:
        assert out.count("--- sample at step") == 2
    code, text, _ = call(sample_command, *options)
    assert (code, len(text)) == (0, 2 + 12 + 1)


@pytest.mark.slow
def test_prompts_of_a_preset_give_way_to_the_text_s_own_beginning(
    train: Train, refusal: Refusal, call: Command, files: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begin = ("lyrics", "--data", files / "song.txt", *SHORT)
    train(*begin, "--run-dir", run)
    described = config_of(run)
    assert described["config"]["sample_prompts"] == ["我想带你"]
    assert call(sample_command, run, "--length", 3)[1].startswith("我想带你")
    # Runs of older versions that showed no samples kept a prompt that they could not use.
    described["config"]["sample_prompts"] = ["The "]
    older = {name: described[name] for name in ("format", "config", "data", "written_by")}
    (run / "config.json").write_text(json.dumps(older))
    code, out, _ = call(sample_command, run, "--length", 3)
    assert (code, len(out), out[0] in SONG) == (0, 1 + 3 + 1, True)
    as_the_preset_has_them = ("--sample-prompts", "分开", "不分开", "--sample-every", "0")
    for asked in (("--sample-prompts", "分开"), as_the_preset_has_them):
        assert "U+5206" in refusal(train_command, *begin, "--run-dir", tmp_path / "no", *asked)


def test_a_text_of_blank_lines_alone_has_a_beginning(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n \n" * 400 + "words at last", encoding="utf-8")
    line = f"--data {tmp_path}/text --characters 1000 --batch-size 2"
    command: Any = read_arguments(line.split())
    system = read_system(command.config).with_samples(replace=not command.own_samples)
    (prompt,) = system.config.sample_prompts
    assert system.vocabulary.encode_prompt(prompt).size


def test_unknown_words_are_printed_and_named(call: Command, word_run: Path, tmp_path: Path) -> None:
    assert config_of(word_run)["config"]["sample_prompts"] == ["часы"]  # not the preset's "The "
    code, out, err = call(sample_command, word_run, "--length", 3)
    assert (code, out.split()[0], "note" in err) == (0, "часы", False)
    prompt = "Xyzzy, «Часы» пробили"
    options = (word_run, "--prompt", prompt, "--length", 3)
    code, out, err = call(sample_command, *options)
    assert (code, out[: len(prompt) + 1], len(out.split())) == (0, f"{prompt} ", 6)
    note, _ = err.splitlines()
    assert note.startswith("note: ")
    assert "'Xyzzy'" in note
    assert "асы" not in note
    assert call(sample_command, *options, "--stream")[1] == out
    row = json.loads(call(sample_command, *options, "--jsonl")[1])
    assert (row["prompt"], row["text"] + "\n", row["ids"][0]) == (prompt, out, 0)
    (tmp_path / "lines").write_text(prompt, encoding="utf-8")
    assert "'Xyzzy'" in call(sample_command, word_run, "--score", tmp_path / "lines")[2]
    lines = call(sample_command, *options, "--line-length", 3)[1].splitlines()
    assert lines[0] == "xyzzy часы пробили"


def test_a_template_of_words_keeps_them_and_may_feed_unknown_ones(
    call: Command, refusal: Refusal, word_run: Path, files: Path, tmp_path: Path
) -> None:
    for token in ("**", "час*"):
        err = refusal(sample_command, word_run, "--template", f"час {token} час")
        assert f"the template's '{token}' holds a *, which stands for a whole word" in err
    text = call(sample_command, word_run, "--template", "час * и * час")[1].split()
    assert (text[0], text[2], text[4], len(text)) == ("час", "и", "час", 5)
    options = (word_run, "--template", "Часы * Xyzzy", "--jsonl", "--feed-unknown")
    _, out, err = call(sample_command, *options)
    row = json.loads(out)
    assert (row["tokens"][0], row["ids"][0] > 0) == ("Часы", True)
    assert (row["tokens"][2], row["ids"][2]) == ("Xyzzy", 0)
    assert "note" not in err
    line = f"--data {files}/words.txt --run-dir {tmp_path}/run --tokens token --sample-every 0"
    assert call(train_command, *line.split(), *SHORT, *MODEL)[0] == 0
    code, out, err = call(sample_command, tmp_path / "run", "--template", "пробили * и")
    assert (code, len(out.split()), "note" in err) == (0, 3, False), err


def test_shakespeare_as_published_trains_and_writes_words(
    train: Train, call: Command, files: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = (
        f"shakespeare --as-published --data {files}/play.txt --run-dir {run} --batch-size 6 "
        "--sequence-length 10 --steps 8 --sample-every 4 --embedding-size 6 --evaluate-every 4"
    )
    out = train(*line.split())
    assert out.count("--- sample at step") == 4  # "wherefore" is no word of the text
    assert "held out" not in out
    tokens = json.loads((run / "vocab.json").read_text())["tokens"]
    assert tokens[0] == "unknown"
    assert "<unused>" in tokens
    assert not any(token.startswith("once") for token in tokens)
    assert "preface" not in tokens  # the published cleaning cuts it off
    options = (run, "--prompt", "thou art more", "--length", 300, "--temperature", 3)
    never = call(sample_command, *options)[1].split()
    assert len(never) == 303
    assert "unknown" not in never
    ends = call(sample_command, *options, "--unknown", "ends")[1].split()
    assert 3 <= len(ends) < 303
    assert "unknown" not in ends


@pytest.mark.slow
def test_wordlm_learns_from_files_of_their_own_and_is_tested(
    train: Train, refusal: Refusal, call: Command, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "words"
    data.mkdir()
    for part, lines in {"train": 200, "valid": 20, "test": 20}.items():
        (data / f"{part}.txt").write_text("to be or not <unk> be\n" * lines)
    begin = shlex.split(
        f"wordlm --data {data} --tokens token --batch-size 4 --sequence-length 8 --epochs 20 "
        "--embedding-size 12 --learning-rate 4 --average-after 1 --run-dir"
    )
    out = train(*begin, run, "--sample-prompts", "to be")
    rows = read_rows(run / "metrics.jsonl")
    assert rows[-1]["heldout_loss"] < 0.5 * rows[0]["heldout_loss"]
    assert "weights are averaged" in out
    judged = json.loads(call(train_command, "--run-dir", run, "--eval-only")[1])
    assert judged["heldout_loss"] == pytest.approx(rows[-1]["heldout_loss"])
    assert judged["test_loss"] == pytest.approx(judged["heldout_loss"], rel=0.2)
    options = (run, "--prompt", "to be", "--greedy", "--length", 5)
    assert call(sample_command, *options)[1].split()[:4] == ["to", "be", "or", "not"]
    again = (train_command, *begin, tmp_path / "no", *MODEL)
    no_matrix = ("--model.cell", "mingru", "--weight-drop", 0.5)
    assert "weight_drop found no w_h" in refusal(*again, *no_matrix)
    (data / "test.txt").write_text("be")
    assert "the test file has 1 tokens, fewer than batch_size" in refusal(*again)


def test_poems_are_learnt_and_their_ends_reported_apart(poem_run: Path) -> None:
    rows = read_rows(poem_run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    last = rows[-1]
    assert last["heldout_loss"] < 0.5 * np.log(14)
    assert last["heldout_accuracy"] > 0.5
    assert {"end_loss", "end_accuracy", "heldout_end_loss", "heldout_end_accuracy"} <= set(last)
    assert "1 were empty poems" in config_of(poem_run)["data"]["about"]


def test_each_blank_of_a_template_is_filled(
    call: Command, refusal: Refusal, poem_run: Path
) -> None:
    options = (poem_run, "--template", "春***月***", "--batch", 3, "--seed", 1)
    code, out, _ = call(sample_command, *options, "--line-length", 4)
    assert code == 0
    assert re.fullmatch(r"(春[^*\0\n]{3}\n月[^*\0\n]{3}\n){3}", out)
    greedy = call(sample_command, *options, "--greedy")[1].splitlines()
    assert len(set(greedy)) == 1
    assert greedy[0][:4] == "春夏秋冬"
    assert re.match("春...月", call(sample_command, poem_run)[1])
    odd = (poem_run, "--template", "帅*春*****", "--greedy")
    assert "U+5E05" in refusal(sample_command, *odd)
    assert re.fullmatch("帅.春.....\n", call(sample_command, *odd, "--feed-unknown")[1])
    assert "both" in refusal(sample_command, *odd, "--prompt", "春")


def test_a_text_from_a_prompt_ends_where_the_model_ends_it(call: Command, poem_run: Path) -> None:
    options = (poem_run, "--prompt", "春夏", "--length", 300, "--batch", 4)
    rows = [json.loads(line) for line in call(sample_command, *options, "--jsonl")[1].splitlines()]
    assert any(row["stopped"] for row in rows)
    for row in rows:
        assert (len(row["ids"]) == 302) != row["stopped"]
        assert 0 not in row["ids"]
    streamed = call(sample_command, *options, "--stream")[1]
    assert streamed.splitlines() == [row["text"] for row in rows]
    whole = call(sample_command, *options, "--ending", "length")[1].splitlines()
    assert [len(text) for text in whole] == [302] * 4
    assert not set("\0") & set("".join(whole))


def test_a_classifier_learns_and_the_best_step_is_kept_with_its_vectors_and_judged(
    call: Command, refusal: Refusal, classifier: Path, poem_run: Path, files: Path
) -> None:
    rows = read_rows(classifier / "metrics.jsonl")
    best = min(rows, key=lambda row: row["heldout_loss"])
    assert best["heldout_accuracy"] > 0.9
    assert (classifier / "checkpoints" / str(best["step"])).is_dir()
    assert {"accuracy", "loss"} <= set(best) and "perplexity" not in best
    model = config_of(classifier)["config"]["model"]
    assert (model["embedding_size"], model["frozen_embedding"]) == (7, True)
    code, out, _ = call(train_command, "--run-dir", classifier, "--eval-only")
    found = json.loads(out)
    assert (code, found["step"]) == (0, best["step"])
    assert found["heldout_loss"] == pytest.approx(best["heldout_loss"], rel=1e-5)
    _, params, vocabulary, _ = load(classifier)
    for line in (files / "vectors.txt").read_text().splitlines():
        word, *numbers = line.split()
        if word in vocabulary:
            kept = params.vectors[vocabulary.encode_tokens([word])[0]]
            np.testing.assert_array_equal(kept, np.array(numbers, np.float32))
    assert "classify" in refusal(sample_command, classifier)
    assert "needs a Classifier" in refusal(classify_command, poem_run)


def test_lines_are_labelled_with_a_probability(
    call: Command, refusal: Refusal, classifier: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    # Of the last line's words the model reads the last 24, the good one among them.
    cut = "dull awful boring " + " ".join(f"word{n}" for n in range(23)) + " great"
    dull = "Dull: awful\u2028boring\x85\x0c..."
    lines = ["\ufeffA wonderful film, moving!", dull, cut, "", " "]
    file = tmp_path / "lines.txt"
    for content in ("\n".join([*lines, ""]), "\n".join(lines), "\r\n".join(lines)):
        file.write_bytes(content.encode())
        code, out, err = call(classify_command, classifier, file)
        assert (code, err) == (0, "")
        found = [line.split("\t") for line in out.removesuffix("\n").split("\n")]
        assert [label for label, _, _ in found[:3]] == ["positive", "negative", "positive"]
        assert [text for _, _, text in found] == ["A wonderful film, moving!", *lines[1:]]
        assert found[3][:2] == found[4][:2]  # of no word either
        for label, probability, _ in found:
            assert (float(probability) > 0.5) == (label == "positive")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()), "ascii"))
        assert call(classify_command, classifier, "--batch-size", 2)[1] == out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\ncaf\xe9 noir\n")))
    err = refusal(classify_command, classifier)
    assert "line 2 of standard input is" in err and "WINDOWS-1252 ('caf\u00e9 noir')" in err


@pytest.mark.slow
def test_vectors_of_a_file_may_be_what_training_begins_with(
    train: Train, call: Command, refusal: Refusal, files: Path, tmp_path: Path
) -> None:
    run, table, vectors = tmp_path / "run", files / "reviews.tsv", files / "vectors.txt"
    line = f"reviews --data {table} --vectors {vectors} --run-dir {run} --train-vectors"
    small = [*REVIEWS, "--epochs", "2", "--word-dropout", "0.1"]
    assert "begin with random ones" in train(*line.split(), *small)
    model, params, vocabulary, _ = load(run, step="newest")
    assert not model.config.frozen_embedding
    line = next(line for line in vectors.read_text().splitlines() if line.startswith("great "))
    given = np.array(line.split()[1:], np.float32)
    learnt = np.asarray(params.embedding)[vocabulary.encode_tokens(["great"])[0]]
    assert 0 < np.abs(learnt - given).max() < 1
    assert "resumed" in train("--run-dir", run, "--resume", "--epochs", "3")
    assert call(classify_command, run, table)[0] == 0
    err = refusal(train_command, "reviews", "--data", table, "--train-vectors")
    assert "name their file" in err


@pytest.mark.slow
def test_the_test_half_of_an_archive_is_judged(train: Train, call: Command, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "reviews.tar.gz", "w:gz") as archive:
        for half, number in (("train", 60), ("test", 30)):
            for row, (label, text) in enumerate(labelled(number)):
                name = f"aclImdb/{half}/{'pos' if label else 'neg'}/{row}_{9 if label else 2}.txt"
                member = tarfile.TarInfo(name)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    run = tmp_path / "run"
    train("reviews", "--data", tmp_path / "reviews.tar.gz", "--run-dir", run, *REVIEWS)
    found = json.loads(call(train_command, "--run-dir", run, "--eval-only")[1])
    assert 0 <= found["test_accuracy"] <= 1
    assert found["test_loss"] > 0


def every_preset_with_every_cell() -> list[Any]:
    """With each cell but the three that the other tests have; in CI, each preset with one."""
    found = []
    for row, preset in enumerate(PRESETS):
        for column, cell in enumerate(CELLS[3:]):
            marks = [pytest.mark.slow, *[pytest.mark.beyond_ci] * (column != row % len(CELLS[3:]))]
            found.append(pytest.param(preset, cell.name, marks=marks))
    return found


@pytest.mark.parametrize(("preset", "cell"), every_preset_with_every_cell())
def test_every_preset_trains_with_every_cell_and_is_used(
    preset: str, cell: str, train: Train, call: Command, files: Path, tmp_path: Path
) -> None:
    run, words = tmp_path / "run", PRESETS[preset].format(files).split()
    train(*preset.split(), *words, "--run-dir", run, "--model.cell", cell, "--steps", 2)
    rows = read_rows(run / "metrics.jsonl")
    assert rows[-1]["step"] == 2
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert load(run, step="newest").model.config.cell == cell
    if preset == "reviews":
        code, out, _ = call(classify_command, run, files / "reviews.tsv")
        assert (code, len(out.splitlines())) == (0, 1201)
    else:
        code, out, _ = call(sample_command, run, "--length", 3, "--force")
        assert (code, bool(out.strip())) == (0, True)
