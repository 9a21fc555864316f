"""The systems' laws: what each trains on, holds out and sums, and that each can be resumed."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core_cases import cases
from jax import Array, random
from run_cases import rows_of, unequal
from tasks import TEXT, config, run

from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.systems import preset_named, read_system
from lstm_jax.systems.base import Predictions
from lstm_jax.systems.corpus import make_corpus
from lstm_jax.systems.language import LanguageConfig, LanguageObjective, LanguageSystem
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig, probabilities
from lstm_jax.text import NOT_COUNTED, build_review_vocabulary
from lstm_jax.training.task import first_state, make_task

COMMON: dict[str, Any] = {
    "batch_size": 8, "steps": 14, "log_every": 3, "evaluate_every": 5, "checkpoint_every": 4,
    "keep_checkpoints": 50, "sample_every": 0,
}  # fmt: skip
SIZES: dict[str, Any] = {"hidden_size": 6, "embedding_size": 4}


def poems(folder: Path, **changes: Any) -> Any:
    settings = COMMON | {"length": 10, "widths": 3, "model": LanguageModelConfig(**SIZES)} | changes
    return read_system(PoemsConfig(data=str(folder / "poems.txt"), **settings))


def reviews(folder: Path) -> Any:
    model = ClassifierConfig(**SIZES, dense_size=5, dropout=0.3, dropout_place="inputs")
    settings = COMMON | {"length": 8, "widths": 2, "model": model}
    return read_system(ReviewsConfig(data=str(folder / "reviews.tsv"), **settings))


def published(folder: Path, **changes: Any) -> Any:
    settings = COMMON | {"sequence_length": 12, "model": LanguageModelConfig(**SIZES)} | changes
    data = str(folder / "text.txt")
    return read_system(LanguageConfig(data=data, layout="published", **settings))


@cases("system", [poems, reviews, published], poems)
def test_every_system_can_be_resumed(system: Any, folder: Path, tmp_path: Path) -> None:
    task = make_task(system(folder))
    whole, report = run(tmp_path / "whole", task)
    assert int(whole.step) == 14
    assert [row["step"] for row in report.rows] == [3, 5, 6, 9, 10, 12, 14]
    run(tmp_path / "cut", task, stop_at=6)
    assert unequal(run(tmp_path / "cut", task)[0], whole) == []
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_poem_s_loss_is_that_of_its_characters_and_of_its_end_apart(folder: Path) -> None:
    system = poems(folder)
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
    lines = (folder / "poems.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "poems.txt").write_bytes(lines.replace(b":", b":\r\xc2\x85\x0c"))
    assert poems(tmp_path).found == poems(folder).found


def test_an_epoch_has_each_poem_once(folder: Path) -> None:
    system = poems(folder)
    feed = system.feed()

    def characters(batches: Any) -> list[str]:
        rows = [
            (np.asarray(inputs), int(length))
            for batch in batches
            for inputs, length in zip(batch.inputs.T, batch.mask.sum(0), strict=True)
        ]
        return sorted(system.vocabulary.decode(row[:length]) for row, length in rows if length)

    longest = system.config.length - 1
    for epoch in (0, 1):
        steps = range(epoch * system.batches, (epoch + 1) * system.batches)
        expected = sorted(system.vocabulary.decode(poem[:longest]) for poem in system.training)
        assert characters(map(feed, steps)) == expected
    expected = sorted(system.vocabulary.decode(poem[:longest]) for poem in system.held_out)
    assert characters(system.heldout()) == expected
    last = poems(folder, heldout_from="last")
    found = map(last.vocabulary.encode, last.found.poems[-len(last.held_out) :])
    assert all(map(np.array_equal, found, last.held_out))


@pytest.mark.parametrize("make", [poems, published])
def test_the_output_bias_may_start_at_log_frequencies(make: Any, folder: Path) -> None:
    system = make(folder, output_bias="frequencies")
    counts = np.ones(len(system.vocabulary))
    feed = system.feed()
    for step in range(system.batches):
        batch = feed(step)
        mask = np.ones(batch.targets.shape, bool) if batch.mask is None else batch.mask
        np.add.at(counts, np.asarray(batch.targets)[np.asarray(mask)], 1)
    state = first_state(make_task(system))
    shares = jax.nn.softmax(state.params.output.b)
    np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-5)
    drawn = first_state(make_task(make(folder)))
    assert unequal(state.params.layers, drawn.params.layers) == []
    assert not np.array_equal(state.params.output.b, drawn.params.output.b)


def test_poems_of_the_published_size_have_the_published_number_of_parameters() -> None:
    config: Any = preset_named("poems", as_published=True)
    shapes = jax.eval_shape(LanguageModel(config.model, 5546).init, random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_119_786


def test_anna_has_the_published_settings() -> None:
    anna: Any = preset_named("anna", as_published=True)
    assert (anna.batch_size, anna.sequence_length, anna.epochs) == (100, 100, 5)
    assert (anna.model.layers, anna.model.hidden_size, anna.model.embedding_size) == (2, 512, None)
    assert (anna.model.dropout, anna.model.dropout_place) == (0.5, "outputs")
    assert (anna.model.initialisation, anna.model.output_stddev) == ("tf1", 0.1)
    optimizer = anna.optimizer
    assert (optimizer.learning_rate, optimizer.clip_norm, optimizer.schedule) == (
        1e-3, 5, "constant"
    )  # fmt: skip
    assert anna.heldout_share == 0


def test_words_of_held_out_reviews_alone_are_unknown(folder: Path) -> None:
    system = reviews(folder)
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
    system = published(folder)
    feed = system.feed()
    steps = np.arange(2 * system.batches).reshape(2, -1)
    epochs = [[np.asarray(feed(step).inputs).tobytes() for step in epoch] for epoch in steps]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    batch = feed(0)
    np.testing.assert_array_equal(batch.targets[-1], batch.inputs[0])  # the published flaw
    np.testing.assert_array_equal(batch.targets[:-1], batch.inputs[1:])


@pytest.mark.parametrize("carried", [False, True])
def test_a_backward_carry_starts_each_batch_at_zero_unless_carried(carried: bool) -> None:
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


@pytest.mark.parametrize("place", ["end", "lanes"])
def test_a_held_out_lane_begins_with_the_text_before_it(place: str) -> None:
    """And each token of the end of the text is predicted once, if that is held out."""
    corpus: Any = make_corpus(config(heldout_share=0.2, heldout_from=place), TEXT)
    times = config().sequence_length
    inputs, targets = corpus.heldout.inputs, corpus.heldout.targets
    assert (targets[:times] == NOT_COUNTED).all() and (targets[times:] != NOT_COUNTED).all()
    for lane in range(inputs.shape[1]):
        lane_text = corpus.vocabulary.decode(inputs[corpus.heldout.mask[:, lane], lane])
        assert lane_text in TEXT
    if place == "end":
        held = round(0.2 * len(TEXT))
        first = corpus.vocabulary.decode(inputs[: times + 1, 0])
        assert first == TEXT[len(TEXT) - held - times - 1 : len(TEXT) - held]
        counted = corpus.heldout.mask & (targets != NOT_COUNTED)
        assert corpus.vocabulary.decode(targets.T[counted.T]) == TEXT[-held:]
        assert corpus.training.tokens.size <= len(TEXT) - held + corpus.training.batch_size


def test_the_end_of_every_lane_is_held_out_as_a_published_notebook_has_it() -> None:
    corpus: Any = make_corpus(config(heldout_share=0.25, heldout_from="lanes"), TEXT)
    whole: Any = make_corpus(config(heldout_share=0.0), TEXT).training
    assert corpus.training.batches == int(whole.batches * 0.75)
    assert corpus.heldout.mask.all()
    rows = len(corpus.training.tokens) - 1
    np.testing.assert_array_equal(corpus.training.tokens, whole.tokens[: rows + 1])
    times = config().sequence_length
    np.testing.assert_array_equal(corpus.heldout.inputs[times:], whole.tokens[rows:-1])
    np.testing.assert_array_equal(corpus.heldout.targets[times:], whole.tokens[rows + 1 :])


@pytest.mark.parametrize("place", ["end", "lanes"])
def test_a_share_of_nothing_holds_nothing_out(place: str) -> None:
    assert make_corpus(config(heldout_share=0.0, heldout_from=place), TEXT).heldout is None


def test_a_folder_has_a_file_for_each_part_and_one_vocabulary(tmp_path: Path) -> None:
    """Each token of the other parts is predicted once, the first after what stands before it."""
    lines = {"train": " the <unk> sat\n\n" * 40, "valid": " a cat sat \n" * 9, "test": "it\n" * 9}
    for part, text in lines.items():
        (tmp_path / f"Some.{part.title()}.txt").write_text(text)
    sizes: Any = {"batch_size": 2, "sequence_length": 4}
    settings = LanguageConfig(data=str(tmp_path), tokens="token", **sizes)
    system = LanguageSystem.read(settings)
    vocabulary = system.vocabulary
    assert vocabulary.tokens == ("<unk>", "<eos>", "sat", "the", "a", "cat", "it")
    assert vocabulary.encode("The <unk>\n").tolist() == [0, 0, 1]
    assert system.corpus.ids[:5].tolist() == [3, 0, 2, 1, 1]
    assert vocabulary.decode(system.corpus.ids[:5]) == "the <unk> sat <eos> <eos>"
    for batches, text in (
        (system.heldout(), lines["valid"]),
        (system.test_batches(), lines["test"]),
    ):
        lanes = [np.concatenate(part) for part in zip(*batches, strict=True)]
        counted = lanes[2] & (lanes[1] != NOT_COUNTED)
        assert lanes[1].T[counted.T].tolist() == vocabulary.encode(text).tolist()
    whole = LanguageSystem.read(replace(settings, data=str(tmp_path / "Some.Train.txt")))
    joined = hashlib.sha256("".join(lines.values()).encode()).hexdigest()
    assert system.sha256 not in (whole.sha256, joined)
    (tmp_path / "Some.Test.txt").unlink()
    assert LanguageSystem.read(settings).sha256 != system.sha256
    no_words = replace(settings, tokens="word", min_count=1)
    (tmp_path / "Some.Valid.txt").write_text("... !!!")
    with pytest.raises(ValueError, match="validation file has no tokens"):
        LanguageSystem.read(no_words)
    (tmp_path / "another.train.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"one file with 'train'.* holds 'Some.Train.txt',.*or name"
    ):
        LanguageSystem.read(settings)


def test_a_share_of_every_lane_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves one part empty"):
        make_corpus(config(heldout_share=0.999, heldout_from="lanes"), TEXT)
