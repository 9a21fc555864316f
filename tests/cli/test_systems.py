"""Each system from its own kind of data to its own kind of answer, in seconds."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from commands import Command, snapshot

from lstm_jax.cli.classify import classify_command
from lstm_jax.cli.sample import sample_command
from lstm_jax.cli.train import train_command
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import load

SONG = "我想带你 去看海 看海的天\n你说想要 风的声音 海的蓝\n" * 60
PLAY = "To be, or not to be: that is the question! Thou art more lovely and more temperate.\n" * 60
MODEL = ["--model.hidden-size", "12", "--log-every", "1"]


def train(call: Command, *arguments: object) -> str:
    code, out, err = call(train_command, *arguments)
    assert (code, err) == (0, "")
    return out


def refusal(call: Command, command: object, *arguments: object) -> str:
    code, out, err = call(command, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "song.txt"
    path.write_text(SONG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(["--model.cell", "rnn"], marks=pytest.mark.slow),
        ["--model.cell", "lstm"],
        pytest.param(["--model.cell", "gru"], marks=pytest.mark.slow),
        pytest.param(["--model.layers", "2"], marks=pytest.mark.slow),
        pytest.param(["--model.bidirectional"], marks=pytest.mark.slow),
        pytest.param(["--model.bidirectional", "--as-published"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_lyrics_of_every_shape(shape: list[str], call: Command, song: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--batch-size", "4", "--sequence-length", "20", "--epochs", "4", *MODEL]
    out = train(
        call, "lyrics", "--data", song, "--run-dir", run, *small, *shape,
        "--characters", 600, "--sample-every", 2, "--sample.length", 10, "--sample-prompts", "海的",
    )  # fmt: skip
    assert "600 characters" in out
    rows = read_rows(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["perplexity"] < rows[0]["perplexity"]
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["carry_backward"] == ("--as-published" in shape)
    options = (run, "--prompt", "海的", "--length", 12, "--greedy")
    if "--model.bidirectional" not in shape:
        assert out.count("--- sample at step") == 2
        code, text, _ = call(sample_command, *options)
        assert (code, len(text)) == (0, 2 + 12 + 1)
        return
    assert "cannot write" in out
    err = refusal(call, sample_command, *options)
    assert "bidirectional" in err
    assert "--force" in err
    code, text, _ = call(sample_command, *options, "--force")
    assert (code, len(text)) == (0, 2 + 12 + 1)


def test_line_ends_of_lyrics_become_spaces(call: Command, song: Path, tmp_path: Path) -> None:
    small = ["--batch-size", "4", "--sequence-length", "20", "--steps", "1", *MODEL]
    train(call, "lyrics", "--data", song, "--run-dir", tmp_path / "run", *small)
    tokens = json.loads((tmp_path / "run" / "vocab.json").read_text())["tokens"]
    assert " " in tokens
    assert "\n" not in tokens


def test_prompts_of_a_preset_give_way_to_the_text_s_own_beginning(
    call: Command, song: Path, tmp_path: Path
) -> None:
    small = ["--batch-size", "4", "--sequence-length", "20", "--steps", "1", *MODEL]
    train(call, "lyrics", "--data", song, "--run-dir", tmp_path / "run", *small)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["sample_prompts"] == ["我想带你"]
    assert call(sample_command, tmp_path / "run", "--length", 3)[1].startswith("我想带你")
    # Runs of older versions that showed no samples kept a prompt that they could not use.
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    described["config"]["sample_prompts"] = ["The "]
    older = {name: described[name] for name in ("format", "config", "data", "written_by")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(older))
    code, out, _ = call(sample_command, tmp_path / "run", "--length", 3)
    assert (code, len(out), out[0] in SONG) == (0, 1 + 3 + 1, True)
    asked = ["--sample-prompts", "分开"]
    err = refusal(
        call, train_command, "lyrics", "--data", song, "--run-dir", tmp_path / "no", *small, *asked
    )
    assert "U+5206" in err
    asked = ["--sample-prompts", "分开", "不分开", "--sample-every", "0"]  # as the preset has them
    err = refusal(
        call, train_command, "lyrics", "--data", song, "--run-dir", tmp_path / "no", *small, *asked
    )
    assert "U+5206" in err


def test_a_text_may_begin_with_blank_lines_and_without_samples(
    call: Command, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("\n \n" * 400 + "words at last", encoding="utf-8")
    small = ["--batch-size", "4", "--sequence-length", "20", "--steps", "1", *MODEL]
    options = ("--data", tmp_path / "text", "--run-dir", tmp_path / "run", *small)
    train(call, *options, "--characters", 1000, "--sample-every", 0)
    assert call(sample_command, tmp_path / "run", "--length", 3)[0] == 0


@pytest.fixture(scope="module")
def word_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "text").write_text("Часы пробили час, и мышь ушла. " * 80, encoding="utf-8")
    small = ["--batch-size", "4", "--sequence-length", "10", "--steps", "2", *MODEL]
    small += ["--tokens", "word", "--sample-every", "2", "--sample.length", "4"]
    options = ["--data", str(folder / "text"), "--run-dir", str(folder / "run"), *small]
    assert train_command(options) == 0
    return folder / "run"


def test_a_preset_s_prompt_of_unknown_words_gives_way_to_a_word_of_the_text(
    call: Command, word_run: Path
) -> None:
    config = json.loads((word_run / "config.json").read_text(encoding="utf-8"))["config"]
    assert config["sample_prompts"] == ["часы"]
    code, out, err = call(sample_command, word_run, "--length", 2)
    assert (code, out.split()[0], "note" in err) == (0, "часы", False)


def test_a_prompt_is_printed_as_given_and_its_unknown_words_are_named(
    call: Command, word_run: Path, tmp_path: Path
) -> None:
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


def test_a_known_word_of_a_template_is_fed_as_itself(call: Command, word_run: Path) -> None:
    options = (word_run, "--template", "Часы * Xyzzy", "--jsonl", "--feed-unknown")
    _, out, err = call(sample_command, *options)
    row = json.loads(out)
    assert row["tokens"][0] == "Часы"
    assert row["ids"][0] > 0
    assert (row["tokens"][2], row["ids"][2]) == ("Xyzzy", 0)
    assert "note" not in err


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "play.txt"
    once = " ".join(f"once{n}" for n in range(200))
    path.write_text("preface " * 960 + PLAY + once, encoding="utf-8")
    return path


@pytest.mark.parametrize("as_published", [pytest.param(False, marks=pytest.mark.slow), True])
def test_shakespeare_trains_and_writes_words(
    as_published: bool, call: Command, play: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ["--batch-size", "6", "--sequence-length", "10", "--steps", "8", "--sample-every", "4"]
    published = ["--as-published"] if as_published else []
    out = train(
        call, "shakespeare", "--data", play, "--run-dir", run, *small, *published, *MODEL,
        "--model.embedding-size", 6, "--evaluate-every", 4,
    )  # fmt: skip
    assert out.count("--- sample at step") == 4  # "wherefore" is no word of the text
    assert ("held out" in out) != as_published
    tokens = json.loads((run / "vocab.json").read_text())["tokens"]
    assert tokens[0] == "unknown"
    assert ("<unused>" in tokens) == as_published
    assert not any(token.startswith("once") for token in tokens)
    assert ("preface" in tokens) != as_published  # the published cleaning cuts it off
    options = (run, "--prompt", "thou art more", "--length", 300, "--temperature", 3)
    never = call(sample_command, *options)[1].split()
    assert len(never) == 303
    assert "unknown" not in never
    ends = call(sample_command, *options, "--unknown", "ends")[1].split()
    assert 3 <= len(ends) < 303
    assert "unknown" not in ends


def test_a_template_of_words(call: Command, play: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--batch-size", "6", "--sequence-length", "10", "--steps", "2", "--sample-every", "0"]
    train(call, "shakespeare", "--data", play, "--run-dir", run, *small, *MODEL)
    text = call(sample_command, run, "--template", "to * or * to *")[1].split()
    assert (text[0], text[2], text[4], len(text)) == ("to", "or", "to", 6)


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "poems.txt"
    rng = np.random.default_rng(0)
    signs = "春夏秋冬花月山水风雪人天"
    lines = ["空:", "一:春花秋月", "二:春花秋月"]
    for number in range(240):
        length = int(rng.integers(4, 60))
        start = int(rng.integers(12))
        body = "".join(signs[(start + place) % 12] for place in range(length))
        lines.append(f"题{number}:{body[: length // 2]} {body[length // 2 :]}。")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def poem_run(tmp_path_factory: pytest.TempPathFactory, poems: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "poems"
    small = ["--batch-size", "16", "--epochs", "6", "--model.embedding-size", "12", *MODEL]
    small += ["--widths", "2"]  # each is a program to compile
    small += ["--optimizer.learning-rate", "0.02", "--optimizer.warmup-steps", "5"]
    small += ["--sample-templates", "春***月***", "--checkpoint-every", "3"]
    assert train_command(["poems", "--data", str(poems), "--run-dir", str(run), *small]) == 0
    return run


def test_poems_are_learnt_and_their_ends_reported_apart(poem_run: Path) -> None:
    rows = read_rows(poem_run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    last = rows[-1]
    assert last["heldout_loss"] < 0.5 * np.log(14)
    assert last["heldout_accuracy"] > 0.5
    for name in ("end_loss", "end_accuracy", "heldout_end_loss", "heldout_end_accuracy"):
        assert last[name] >= 0
    about = json.loads((poem_run / "config.json").read_text())["data"]["about"]
    assert "1 were empty poems" in about


def test_a_template_s_characters_stand_and_each_blank_is_filled(
    call: Command, poem_run: Path
) -> None:
    options = (poem_run, "--template", "春****月****", "--batch", 3, "--seed", 1)
    code, out, _ = call(sample_command, *options, "--line-length", 5)
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 6
    assert {len(line) for line in lines} == {5}
    assert [line[0] for line in lines] == ["春", "月"] * 3
    assert not set(out) & set("*\0")
    greedy = call(sample_command, *options, "--greedy")[1].splitlines()
    assert len(set(greedy)) == 1
    assert greedy[0][:5] == "春夏秋冬花"
    free_start = call(sample_command, poem_run, "--template", "*春**")[1]
    assert free_start[1] == "春"
    by_default = call(sample_command, poem_run)[1]
    assert (by_default[0], by_default[4]) == ("春", "月")


def test_a_character_that_the_poems_lack_is_an_error_or_shown(
    call: Command, poem_run: Path
) -> None:
    options = (poem_run, "--template", "帅***", "--greedy")
    err = refusal(call, sample_command, *options)
    assert "U+5E05" in err
    code, out, _ = call(sample_command, *options, "--feed-unknown")
    assert (code, out[0], len(out)) == (0, "帅", 5)
    assert "both" in refusal(call, sample_command, *options, "--prompt", "春")


def test_what_goes_on_from_a_prompt_ends_where_the_model_ends_a_poem(
    call: Command, poem_run: Path
) -> None:
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


GOOD, BAD = ["wonderful", "moving", "great"], ["dull", "awful", "boring"]


def review(rng: np.random.Generator, label: int) -> str:
    words = [f"word{rng.integers(30)}" for _ in range(int(rng.integers(3, 30)))]
    words[int(rng.integers(len(words)))] = str(rng.choice(GOOD if label else BAD))
    return " ".join(words).capitalize() + ".<br /><br />Don't ask!"


def labelled(number: int) -> list[tuple[int, str]]:
    rng = np.random.default_rng(number)
    return [(row % 2, review(rng, row % 2)) for row in range(number)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "reviews.tsv"
    rows = [f"{text}\t{'positive' if label else 'negative'}" for label, text in labelled(1200)]
    path.write_text("text\tsentiment\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "vectors.txt"
    rng = np.random.default_rng(1)
    words = [*GOOD, *BAD, *(f"word{n}" for n in range(25)), "never"]
    lines = [f"{word} " + " ".join(f"{x:.4f}" for x in rng.normal(size=7)) for word in words]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


REVIEWS = ["--batch-size", "32", "--length", "24", "--epochs", "12", *MODEL]
REVIEWS += [
    "--model.dense-size",
    "8",
    "--model.dropout",
    "0.1",
    "--optimizer.learning-rate",
    "0.02",
]
EASY = ["--model.layers", "1", "--model.pooling", "max", "--model.dense-dropout", "0"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, table: Path, vectors: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "reviews"
    options = ["--data", str(table), "--vectors", str(vectors), "--run-dir", str(run)]
    assert train_command(["reviews", *options, *REVIEWS, *EASY]) == 0
    return run


def test_a_classifier_learns_and_the_best_step_is_kept(classifier: Path) -> None:
    rows = read_rows(classifier / "metrics.jsonl")
    best = min(rows, key=lambda row: row["heldout_loss"])
    assert best["heldout_accuracy"] > 0.9
    assert (classifier / "checkpoints" / str(best["step"])).is_dir()
    assert {"accuracy", "heldout_accuracy", "loss", "heldout_loss"} <= set(best)
    assert "perplexity" not in best


def test_lines_are_labelled_with_a_probability(
    call: Command, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"good\ncaf\xe9 noir\n", "WINDOWS-1252 ('caf\u00e9 noir')"),
        (b"good\nna\xc3\xafve \xe2\x80", "cut off"),
        (b"\x1f\x8b\x08\n", "gunzip"),
    ],
)
def test_what_is_no_text_is_not_classified(
    content: bytes,
    said: str,
    call: Command,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "lines.txt").write_bytes(content)
    assert said in refusal(call, classify_command, classifier, tmp_path / "lines.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    err = refusal(call, classify_command, classifier)
    assert said in err and f"line {1 + content.startswith(b'good')} of standard input" in err


def test_a_classifier_s_vectors_are_in_its_checkpoints_and_never_change(
    call: Command, classifier: Path, vectors: Path
) -> None:
    config = json.loads((classifier / "config.json").read_text())["config"]
    assert config["model"]["embedding_size"] == 7
    assert config["model"]["frozen_embedding"]
    code, out, _ = call(train_command, "--run-dir", classifier, "--eval-only")
    assert code == 0
    rows = read_rows(classifier / "metrics.jsonl")
    found = json.loads(out)
    best = min(rows, key=lambda row: row["heldout_loss"])
    assert found["step"] == best["step"]
    assert found["heldout_loss"] == pytest.approx(best["heldout_loss"], rel=1e-5)
    _, params, vocabulary, _ = load(classifier)
    for line in vectors.read_text().splitlines():
        word, *numbers = line.split()
        if word in vocabulary:
            kept = params.vectors[vocabulary.encode_tokens([word])[0]]
            np.testing.assert_array_equal(kept, np.array(numbers, np.float32))


def test_vectors_of_a_file_may_be_what_training_begins_with(
    call: Command, table: Path, vectors: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = [*REVIEWS, *EASY, "--epochs", "2", "--model.word-dropout", "0.1"]
    options = ("reviews", "--data", table, "--vectors", vectors, "--run-dir", run, *small)
    assert "begin with random ones" in train(call, *options, "--train-vectors")
    model, params, vocabulary, _ = load(run, step="newest")
    assert not model.config.frozen_embedding
    line = next(line for line in vectors.read_text().splitlines() if line.startswith("great "))
    given = np.array(line.split()[1:], np.float32)
    learnt = np.asarray(params.embedding)[vocabulary.encode_tokens(["great"])[0]]
    assert 0 < np.abs(learnt - given).max() < 1
    shown = train(call, "--run-dir", run, "--resume", "--epochs", "3")
    assert "resumed" in shown
    assert call(classify_command, run, table)[0] == 0
    err = refusal(call, train_command, "reviews", "--data", table, "--train-vectors")
    assert "name their file" in err


def test_a_classifier_does_not_write_and_a_writer_does_not_classify(
    call: Command, classifier: Path, poem_run: Path
) -> None:
    assert "classify" in refusal(call, sample_command, classifier)
    assert "needs a Classifier" in refusal(call, classify_command, poem_run)


def test_the_folder_and_its_archive_train_the_same_and_the_test_half_is_judged(
    call: Command, tmp_path: Path
) -> None:
    root = tmp_path / "aclImdb"
    for half, number in (("train", 60), ("test", 30)):
        for row, (label, text) in enumerate(labelled(number)):
            file = root / half / ("pos" if label else "neg") / f"{row}_{9 if label else 2}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    with tarfile.open(tmp_path / "reviews.tar.gz", "w:gz") as archive:
        archive.add(root, "aclImdb")
    small = [*REVIEWS, "--epochs", "2"]
    found = []
    for name in ("aclImdb", "reviews.tar.gz"):
        run = tmp_path / f"run-{name}"
        train(call, "reviews", "--data", tmp_path / name, "--run-dir", run, *small)
        found.append(json.loads(call(train_command, "--run-dir", run, "--eval-only")[1]))
    assert found[0] == found[1]
    assert 0 <= found[0]["test_accuracy"] <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "columns named text"),
        ("text\tlabel\n", "review"),
        ("text\tlabel\nfine\t3\n", "line 2"),
        ("words\tlabel\nfine\t1\n", "text"),
    ],
)
def test_reviews_that_cannot_be_read_are_one_line(
    content: str, said: str, call: Command, tmp_path: Path
) -> None:
    (tmp_path / "reviews.tsv").write_text(content, encoding="utf-8")
    before = snapshot(tmp_path)
    options = ("--data", tmp_path / "reviews.tsv", "--run-dir", tmp_path / "run")
    assert said in refusal(call, train_command, "reviews", *options)
    assert snapshot(tmp_path) == before
