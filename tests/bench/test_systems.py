"""The table of trained systems, from run folders made by hand."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from bench import systems
from bench.__main__ import main
from bench.baselines import NOT_AT_HAND, ngrams, published
from bench.ngram import choose_discount, evidence, heldout_loss
from bench.runs import differences, read_run
from lstm_jax.cli.console import run_command
from lstm_jax.systems import preset_named, presets, read_system, to_dict
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.language import ANNA, DOCS, LYRICS, SHAKESPEARE, LanguageConfig
from lstm_jax.systems.poems import POEMS
from lstm_jax.systems.reviews import REVIEWS
from lstm_jax.text import build_char_vocabulary

SHA256 = "5" * 64
TEXT = "".join(
    f"A fox, {n % 7} dogs and {n % 5} cats met at the river {n % 3}.\n" for n in range(99)
)

Rows = list[dict[str, Any]]


def evaluations(*losses: float | None, **others: list[float]) -> Rows:
    """A row an epoch."""
    return [
        {"step": 10 * n, "epoch": float(n), "loss": 9.0, "heldout_loss": loss, "seconds": 30.0 * n}
        | {name: values[n - 1] for name, values in others.items()}
        for n, loss in enumerate(losses, 1)
    ]


def write(
    path: Path, config: TrainConfig, rows: Rows, *, sha256: str = SHA256, device: str = "1 x cpu"
) -> Path:
    path.mkdir()
    data = {"sha256": sha256, "about": "a text"}
    described: dict[str, Any] = {"format": 2, "config": to_dict(config), "data": data}
    if device:
        described["written_by"] = {"device": device, "processor_cores": 2}
    (path / "config.json").write_text(json.dumps(described))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines_of(*paths: Path) -> list[systems.Line]:
    return systems.make_lines([read_run(path) for path in paths])


def text_file(folder: Path, text: str = TEXT) -> tuple[str, str]:
    file = folder / "text.txt"
    file.write_text(text)
    return str(file), hashlib.sha256(text.encode()).hexdigest()


NONE = "–"  # noqa: RUF001


def test_seeds_are_one_line_with_mean_and_range(tmp_path: Path) -> None:
    config = replace(DOCS, epochs=2, data="gone.txt")
    for seed, last in enumerate((1.0, 1.2, 1.7)):
        other = replace(config, seed=seed, evaluate_every=7 + seed, data=f"gone{seed}.txt")
        device = "1 x cpu" if seed < 2 else ""
        write(tmp_path / str(seed), other, evaluations(2.0, last), device=device)
    (line,) = lines_of(*(tmp_path / str(seed) for seed in range(3)))
    found = line.figures["heldout_loss"]
    assert found[:4] == (pytest.approx(1.3), 1.0, 1.7, (1.0, 1.2, 1.7))
    assert line.seconds == {"1 x cpu, 2 cores": 60.0, "device not recorded": 60.0}
    assert line.cells() == (
        "docs",
        "`--epochs 2`",
        "3",
        "1.300 [1.000, 1.700] at epoch 2",
        NONE,
        NOT_AT_HAND,
        "60 s (1 x cpu, 2 cores); 60 s (device not recorded)",
    )


def test_other_settings_other_data_and_unfinished_runs_are_lines_of_their_own(
    tmp_path: Path,
) -> None:
    short = replace(DOCS, epochs=2, data="gone.txt")
    wide = replace(short, model=replace(DOCS.model, hidden_size=512))
    done = evaluations(2.0, 1.0)
    paths = [
        write(tmp_path / "a", short, done),
        write(tmp_path / "b", wide, done),
        write(tmp_path / "c", short, done, sha256="6" * 64),
        write(tmp_path / "d", replace(short, seed=1), done[:1]),
        write(tmp_path / "e", replace(short, seed=2), done),
    ]
    lines = lines_of(*paths)
    assert [[run.config.seed for run in line.runs] for line in lines] == [[0, 2], [0], [0], [1]]
    assert lines[3].cells()[2] == "1; unfinished, at epoch 1 of 2"


LYRICS_ROWS = [
    {"step": 8 * n, "epoch": float(n), "loss": 0.0, "perplexity": 1 + 1 / n, "seconds": n}
    for n in range(1, 161)
]
OF_POEMS = {"heldout_accuracy": [0.1, 0.125, 0.2], "heldout_end_loss": [0.3, 0.2, 0.1]}
OF_REVIEWS = {"heldout_accuracy": [0.7, 0.5, 0.75, 0.76, 0.7, 0.7, 0.7, 0.7]}
# Shakespeare's published figure is the training loss of a run that holds nothing out.
JUDGED: dict[str, tuple[TrainConfig, Rows, dict[int, str]]] = {
    "the best where it is not the last": (
        replace(SHAKESPEARE, epochs=3, data="gone.txt"),
        evaluations(6.0, 5.5, 5.75),
        {3: "5.750 at epoch 3, best 5.500 at epoch 2", 4: NONE},
    ),
    "the training loss where nothing is held out": (
        ANNA,
        [{"step": 5, "epoch": 5.0, "loss": 1.25, "seconds": 3.0}],
        {1: "as preset", 2: "1", 3: "1.250 at epoch 5", 4: NONE, 5: NONE},
    ),
    "lyrics by their perplexity at two epochs": (
        LYRICS,
        LYRICS_ROWS,
        {
            3: "1.025 at epoch 40, 1.006 at epoch 160",
            4: "1.041 at epoch 40, 1.016 at 160 (other text); a book's 1.02 at 40",
        },
    ),
    "lyrics that are not that far": (
        LYRICS,
        LYRICS_ROWS[:20],
        {2: "1; unfinished, at epoch 20 of 160", 3: "1.050 at epoch 20"},
    ),
    "poems without their ends": (
        replace(POEMS, epochs=3, data="gone.txt"),
        evaluations(6.5, 6.0, 6.25, **OF_POEMS),
        {3: "6.250 at epoch 3, best 6.000 at epoch 2, accuracy 12.5%"},
    ),
    "reviews where the held-out loss is lowest": (
        replace(REVIEWS, vectors="/far/away/glove.txt"),
        evaluations(0.6, None, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, **OF_REVIEWS),
        {
            1: "`--vectors glove.txt`",
            2: "1; ended by patience at epoch 8",
            3: "75.0% at epoch 3 (highest 76.0%)",
            5: NONE,
        },
    ),
    "without an evaluation": (
        replace(DOCS, data="gone.txt", steps=50),
        [{"step": 10, "epoch": 0.1, "loss": 3.0}],
        {
            2: "1; unfinished, at step 10 of 50",
            3: "not evaluated yet",
            6: "time not recorded (1 x cpu, 2 cores)",
        },
    ),
    "without a finite number": (
        replace(DOCS, data="gone.txt", steps=50),
        evaluations(None),
        {3: "not finite at epoch 1"},
    ),
}


@pytest.mark.parametrize("case", JUDGED)
def test_each_system_is_judged_by_figures_of_its_own(case: str, tmp_path: Path) -> None:
    config, rows, wanted = JUDGED[case]
    (line,) = lines_of(write(tmp_path / "a", config, rows))
    assert {place: line.cells()[place] for place in wanted} == wanted
    assert ("nothing held out" in systems.table([line])) == (config is ANNA)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.preset)
def test_a_preset_differs_from_itself_in_nothing(preset: TrainConfig) -> None:
    assert differences(preset) == ()
    assert differences(replace(preset, seed=3, data="x", log_every=7)) == ()


def test_differences_are_flags() -> None:
    model = replace(LYRICS.model, cell="gru", bidirectional=True)
    config = replace(LYRICS, model=model, sample_every=0)
    assert differences(config) == ("--model.cell gru", "--model.bidirectional")
    poems = replace(POEMS, drop_unfit=False, steps=9)
    assert differences(poems) == ("--steps 9", "--no-drop-unfit")
    as_published = preset_named("shakespeare", as_published=True)
    assert differences(as_published) == ("--as-published",)
    assert differences(LanguageConfig(epochs=3)) == ("--epochs 3",)


def test_published_figures_stand_only_beside_the_settings_they_hold_for() -> None:
    tenth = replace(ANNA, heldout_share=0.1, epochs=20)
    assert "1.292" in str(published(tenth))
    assert published(replace(tenth, heldout_share=0.2)) is None
    gru = replace(LYRICS, model=replace(LYRICS.model, cell="gru"))
    assert "1.021" in str(published(gru))
    assert "5.99" in str(published(preset_named("shakespeare", as_published=True)))
    assert published(SHAKESPEARE) is published(POEMS) is published(REVIEWS) is None


OF_TEXT = replace(DOCS, batch_size=2, sequence_length=8, epochs=1)


def with_text(folder: Path, config: Any, seeds: int = 1, text: str = TEXT) -> Any:
    """A line of runs on a text that is there."""
    data, sha256 = text_file(folder, text)
    rows = evaluations(6.0, heldout_accuracy=[0.1], heldout_end_loss=[0.2])
    paths = (
        write(folder / str(seed), replace(config, data=data, seed=seed), rows, sha256=sha256)
        for seed in range(seeds)
    )
    (line,) = lines_of(*paths)
    return line


def test_the_ngram_of_a_stream_is_that_of_the_bench(tmp_path: Path) -> None:
    line, vocabulary = with_text(tmp_path, OF_TEXT), build_char_vocabulary(TEXT)
    ids = vocabulary.encode(TEXT)
    cut = len(ids) - round(0.05 * len(ids))
    wanted = heldout_loss([ids[:cut]], [ids[cut:]], order=6, vocabulary_size=len(vocabulary))
    assert (line.ngram.mean, line.order) == (wanted.loss, 6)
    assert line.cells()[5] == f"{wanted.loss:.3f} (n = 6)"


def test_the_ngram_of_lanes_sees_each_lane_s_own_past(tmp_path: Path) -> None:
    lanes_of: Any = {"heldout_share": 0.25, "heldout_from": "lanes", "batch_size": 3}
    line = with_text(tmp_path, replace(ANNA, sequence_length=8, **lanes_of))
    vocabulary = build_char_vocabulary(TEXT)
    ids, how = vocabulary.encode(TEXT), {"order": 6, "vocabulary_size": len(vocabulary)}
    batches = (len(ids) - 1) // 24
    steps, kept = 8 * batches, 8 * int(batches * 0.75) + 1
    lanes = [ids[lane * steps : (lane + 1) * steps + 1] for lane in range(3)]
    discount = choose_discount([np.concatenate([lane[:kept] for lane in lanes])], **how)
    wanted = evidence(lanes, [kept] * 3, **how).mean_loss(discount)
    assert line.ngram.mean == pytest.approx(wanted, rel=1e-12)


def test_the_ngram_of_poems_follows_each_seed_s_split(tmp_path: Path) -> None:
    text = "".join(f"t{n}:{'abcde'[n % 5]}{'vwxyz'[n % 3]}{'klm'[n % 2]}ab{n}\n" for n in range(60))
    line = with_text(tmp_path, replace(POEMS, epochs=1), 2, text)
    wanted = []
    for run in line.runs:
        system: Any = read_system(run.config)
        split, size = (system.training, system.held_out), len(system.vocabulary)
        found = heldout_loss(*split, order=3, vocabulary_size=size, goes_on=False)
        wanted.append(found.loss)
    assert wanted[0] != wanted[1]
    assert line.ngram.values == tuple(wanted)
    assert line.cells()[5].startswith(f"{np.mean(wanted):.3f} [{min(wanted):.3f}, ")


def test_one_split_is_fitted_once_and_other_data_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mock(side_effect=read_system)
    monkeypatch.setattr("bench.baselines.read_system", read)
    line = with_text(tmp_path, OF_TEXT, 2)
    assert len(set(line.ngram.values)) == read.call_count == 1
    other = write(tmp_path / "other", line.runs[0].config, evaluations(1.0), sha256="6" * 64)
    assert ngrams([read_run(other)]) == NOT_AT_HAND


def test_a_kept_run_makes_the_same_line_and_finds_its_data_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sha256 = text_file(tmp_path)
    config = replace(DOCS, preset="custom", data=data)
    path = write(tmp_path / "run", config, evaluations(2.0, 1.23456789, None), sha256=sha256)
    assert main(["systems", str(path), "--keep", str(tmp_path / "kept")]) == 0
    kept = tmp_path / "kept" / "run"
    assert sorted(file.name for file in kept.iterdir()) == ["config.json", "metrics.jsonl"]
    assert str(tmp_path) not in (kept / "config.json").read_text()
    (line,) = lines_of(path)
    (without,) = lines_of(kept)
    assert without.ngram == NOT_AT_HAND
    monkeypatch.setenv("LSTM_JAX_DATA", str(tmp_path))
    (found,) = lines_of(kept)
    assert found.cells() == line.cells()
    assert found.figures["best_heldout_loss"].mean == 1.234568


def test_the_command_prints_and_writes_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poems = replace(POEMS, epochs=1, data="gone.txt")
    rows = evaluations(None, heldout_accuracy=[0.1], heldout_end_loss=[0.2])
    arguments = [
        "systems",
        str(write(tmp_path / "poems", poems, rows)),
        str(write(tmp_path / "anna", ANNA, evaluations(1.5))),
        str(tmp_path / "anna" / ".." / "anna"),
        *("--json", str(tmp_path / "lines.json")),
        *("--markdown", str(tmp_path / "table.md")),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    cells = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(cells) == 4
    assert len({len(line) for line in cells}) == 1
    assert [line.split()[1] for line in cells[2:]] == ["anna", "poems"]
    assert "\n- poems: held-out loss in nats per character" in printed
    anna, found = map(json.loads, (tmp_path / "lines.json").read_text().splitlines())
    assert anna["seeds"] == [0]
    assert found["figures"]["heldout_loss"]["mean"] is None
    assert found["ngram"] == NOT_AT_HAND

    for wrong, message in (
        ([], "there is no run to show"),
        ([str(tmp_path / "nowhere")], "nowhere is not a run folder"),
        (
            [str(write(tmp_path / "torn", ANNA, []))],
            "torn has no metrics (metrics.jsonl is missing, empty, or",
        ),
    ):
        monkeypatch.setattr("sys.argv", ["bench", "systems", *wrong])
        assert run_command("bench", main) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
