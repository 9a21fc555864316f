"""The systems' laws: what each sums, and that each resumes as if it had never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array, random
from tasks import TEXT, assert_same_bits, run, without_timings

from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.systems import preset_named, read_system
from lstm_jax.systems.base import Predictions
from lstm_jax.systems.language import LanguageConfig, LanguageObjective, LanguageSystem
from lstm_jax.systems.poems import PoemsConfig, PoemsSystem
from lstm_jax.systems.reviews import ReviewsConfig, ReviewsSystem, probabilities
from lstm_jax.text import build_review_vocabulary
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import first_state, make_task

SIGNS = "abcdefghij"
COMMON: dict[str, Any] = {
    "batch_size": 8,
    "steps": 14,
    "log_every": 3,
    "evaluate_every": 5,
    "checkpoint_every": 4,
    "keep_checkpoints": 50,
    "sample_every": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(list(SIGNS), rng.integers(1, 13))) for _ in range(70)]
    (folder / "poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    reviews = [f"{'ab'[row % 2]} {' '.join(poems[row])}\t{row % 2}" for row in range(70)]
    (folder / "reviews.tsv").write_text("text\tlabel\n" + "\n".join(reviews) + "\n")
    (folder / "text.txt").write_text(TEXT)
    return folder


def poems_config(folder: Path, **changes: Any) -> PoemsConfig:
    model = LanguageModelConfig(hidden_size=6, embedding_size=4)
    settings = {"length": 10, "widths": 3, "model": model} | changes
    return PoemsConfig(**COMMON | {"data": str(folder / "poems.txt")} | settings)


def reviews_config(folder: Path) -> ReviewsConfig:
    model = ClassifierConfig(
        hidden_size=6, embedding_size=4, dense_size=5, dropout=0.3, dropout_place="inputs"
    )
    data = str(folder / "reviews.tsv")
    return ReviewsConfig(**COMMON | {"data": data, "length": 8, "widths": 2, "model": model})


def published_config(folder: Path) -> LanguageConfig:
    model = LanguageModelConfig(hidden_size=6, embedding_size=4)
    data = str(folder / "text.txt")
    own = {"data": data, "layout": "published", "sequence_length": 12, "model": model}
    return LanguageConfig(**COMMON | own)


@pytest.mark.parametrize(
    "make",
    [
        poems_config,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (reviews_config, published_config)
        ),
    ],
)
def test_every_system_stopped_and_resumed_equals_itself_uninterrupted(
    make: Any, folder: Path, tmp_path: Path
) -> None:
    task = make_task(read_system(make(folder)))
    whole, report = run(tmp_path / "whole", task)
    assert int(whole.step) == 14
    assert [row["step"] for row in report.rows] == [3, 5, 6, 9, 10, 12, 14]
    run(tmp_path / "cut", task, stop_at=6)
    resumed, _ = run(tmp_path / "cut", task, resume=True)
    assert_same_bits(resumed, whole)
    rows = [read_rows(RunFolder(tmp_path / name).metrics) for name in ("whole", "cut")]
    assert without_timings(rows[0]) == without_timings(rows[1])


def test_a_poem_s_loss_is_that_of_its_characters_and_of_its_end_apart(folder: Path) -> None:
    system = read_system(poems_config(folder))
    assert isinstance(system, PoemsSystem)
    objective, model = system.objective, system.model
    params = objective.init(random.key(0))
    data = system.feed()(3)

    @jax.jit
    def each(params: Any, tokens: Array, targets: Array) -> tuple[Array, Array]:
        _, logits = model.apply(params, None, tokens[:, None])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], targets)
        return losses, logits[:, 0].argmax(-1) == targets

    def naive(params: Any) -> Any:
        """Every poem by itself."""
        sums = {"": jnp.zeros(3), "end_": jnp.zeros(3)}
        for length, tokens, targets in zip(data.mask.sum(0), *np.asarray(data[:2]).mT, strict=True):
            losses, hits = each(params, tokens[:length], targets[:length])
            is_end = targets[:length] == 0
            for name, chosen in (("", ~is_end), ("end_", is_end)):
                sums[name] += jnp.stack([losses @ chosen, (hits & chosen).sum(), chosen.sum()])
        return sums[""][0] + sums["end_"][0], sums

    def ours(params: Any) -> Any:
        parts = objective.sums(params, (), data, jnp.int32(0), None)[0].parts
        return sum(part.loss for part in parts.values()), parts

    found, gradient = jax.jit(jax.grad(ours, has_aux=True))(params)[::-1]
    expected, naive_gradient = jax.grad(naive, has_aux=True)(params)[::-1]
    for name, part in found.items():
        np.testing.assert_allclose(part, expected[name], rtol=1e-4, err_msg=name)
    for pair in zip(*map(jax.tree.leaves, (gradient, naive_gradient)), strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5)


def test_lf_and_crlf_alone_end_a_poem_s_line(folder: Path, tmp_path: Path) -> None:
    poems = (folder / "poems.txt").read_bytes()
    (tmp_path / "poems.txt").write_bytes(
        poems.replace(b":", b":\r\xc2\x85\x0c").replace(b"\n", b"\r\n")
    )
    plain, other = (read_system(poems_config(place)) for place in (folder, tmp_path))
    assert isinstance(plain, PoemsSystem) and isinstance(other, PoemsSystem)
    assert other.found == plain.found


def test_each_poem_is_trained_on_once_an_epoch_and_each_held_out_one_judged_once(
    folder: Path,
) -> None:
    system = read_system(poems_config(folder))
    assert isinstance(system, PoemsSystem)
    feed = system.feed()

    def characters(batches: Any) -> list[str]:
        found = []
        for batch in batches:
            for row in range(batch.mask.shape[1]):
                length = int(batch.mask[:, row].sum())
                if length:
                    found.append(system.vocabulary.decode(np.asarray(batch.inputs)[:length, row]))
        return sorted(found)

    longest = system.config.length - 1
    for epoch in (0, 1):
        steps = range(epoch * system.batches, (epoch + 1) * system.batches)
        expected = sorted(system.vocabulary.decode(poem[:longest]) for poem in system.training)
        assert characters(map(feed, steps)) == expected
    expected = sorted(system.vocabulary.decode(poem[:longest]) for poem in system.held_out)
    assert characters(system.heldout()) == expected
    last = read_system(poems_config(folder, heldout_from="last"))
    assert isinstance(last, PoemsSystem)
    poems = [last.vocabulary.encode(poem) for poem in last.found.poems]
    for poem, held in zip(poems[-len(last.held_out) :], last.held_out, strict=True):
        np.testing.assert_array_equal(poem, held)


@pytest.mark.parametrize("make", [poems_config, published_config])
def test_the_output_layer_may_start_from_how_often_each_token_is_a_target(
    make: Any, folder: Path
) -> None:
    system = read_system(dataclasses.replace(make(folder), output_bias="frequencies"))
    counts = np.ones(len(system.vocabulary))
    feed = system.feed()
    for step in range(system.batches):
        batch = feed(step)
        mask = np.ones(batch.targets.shape, bool) if batch.mask is None else batch.mask
        np.add.at(counts, np.asarray(batch.targets)[np.asarray(mask)], 1)
    state = first_state(make_task(system))
    np.testing.assert_allclose(
        jax.nn.softmax(state.params.output.b), counts / counts.sum(), rtol=1e-5
    )
    drawn = first_state(make_task(read_system(make(folder))))
    assert_same_bits(state.params.layers, drawn.params.layers)
    assert not np.array_equal(state.params.output.b, drawn.params.output.b)


def test_widths_change_the_padding_and_not_the_loss(folder: Path) -> None:
    losses = []
    for widths in (1, 3):
        system = read_system(poems_config(folder, widths=widths))
        params = system.objective.init(random.key(0))
        total, sums_of = np.zeros(3), jax.jit(system.objective.sums)
        for batch in system.heldout():
            sums, _ = sums_of(params, (), batch, jnp.int32(0), None)
            total += np.asarray(sums.parts[""])
        losses.append(total)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_poems_of_the_published_size_have_the_published_number_of_parameters() -> None:
    config = preset_named("poems", as_published=True)
    assert isinstance(config, PoemsConfig)
    shapes = jax.eval_shape(LanguageModel(config.model, 5546).init, random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_119_786


def test_words_of_held_out_reviews_are_not_in_the_vocabulary_unless_trained_on(
    folder: Path,
) -> None:
    system = read_system(reviews_config(folder))
    assert isinstance(system, ReviewsSystem)
    used = {int(token) for row in system.training.rows for token in row}
    assert used >= set(range(4, len(system.vocabulary)))


def test_a_review_is_read_in_the_normal_form_of_the_vocabulary() -> None:
    vocabulary = build_review_vocabulary([["caf\u00e9", "ole\u0301"]])
    config = ReviewsConfig(model=ClassifierConfig(hidden_size=4, embedding_size=4, dense_size=3))
    model = Classifier(config.model, len(vocabulary))
    params = model.init(random.key(0))
    texts = ["Caf\u00e9, ole\u0301!", "Cafe\u0301, ol\u00e9!", "Cafe, ole!"]
    same, other, plain = probabilities(model, params, vocabulary, config, texts, len(texts))
    assert same == other
    assert same != plain


def test_published_batches_are_shuffled_anew_each_epoch_and_each_comes_once(folder: Path) -> None:
    system = read_system(published_config(folder))
    assert isinstance(system, LanguageSystem)
    feed = system.feed()
    epochs = []
    for epoch in (0, 1):
        steps = range(epoch * system.batches, (epoch + 1) * system.batches)
        epochs.append([np.asarray(feed(step).inputs).tobytes() for step in steps])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    batch = feed(0)
    np.testing.assert_array_equal(batch.targets[-1], batch.inputs[0])  # the published flaw
    np.testing.assert_array_equal(batch.targets[:-1], batch.inputs[1:])


@pytest.mark.parametrize("carried", [False, True])
def test_a_backward_carry_starts_each_batch_at_zero_unless_carried(carried: bool) -> None:
    from lstm_jax.models import LanguageModel

    model = LanguageModel(LanguageModelConfig(hidden_size=5, bidirectional=True), 9)
    objective = LanguageObjective(model, 6, carry_backward=carried)
    params = objective.init(random.key(0))
    tokens = random.randint(random.key(1), (13, 3), 0, 9)
    first = Predictions(tokens[:6], tokens[1:7], None)
    second = Predictions(tokens[6:12], tokens[7:13], None)
    sums = jax.jit(objective.sums)
    _, carry = sums(params, model.zero_carry(params, 3), first, jnp.int32(0), None)
    found, _ = sums(params, carry, second, jnp.int32(1), None)
    if not carried:
        zero = jax.tree.map(jnp.zeros_like, carry[0].backward)
        carry = (carry[0]._replace(backward=zero),)
    expected, _ = model.token_sums(params, carry, second.inputs, second.targets)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.parts[""].loss, expected.loss, rtol=1e-6)
