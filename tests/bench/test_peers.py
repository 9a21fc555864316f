"""Each peer, on tiny systems, does the same work as ours."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from other_work import GRU, GRU_LAYER, INSTALLED, LSTM_LAYER, POEMS, REVIEWS, TINY, named

from bench import ours, peers, shapes
from bench.layer import gradients, require_same_gradients
from bench.sample import continuations, require_same_continuations
from bench.shapes import PEERS_CELLS, AnySystem, DType, Job, LayerShape, System
from bench.train import learning, require_same_learning
from lstm_jax.cells import CellName
from lstm_jax.sampling import with_weights

slow = pytest.mark.slow


@named(*INSTALLED)
@pytest.mark.parametrize(
    ("system", "dtype"),
    [
        (GRU, "float32"),
        *(pytest.param(each, "float32", marks=slow) for each in (TINY, POEMS, REVIEWS)),
        *(pytest.param(each, "bfloat16", marks=slow) for each in (POEMS, REVIEWS)),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_every_peer_learns_the_same(name: str, system: AnySystem, dtype: DType) -> None:
    try:
        found = learning(peers.load(name, {}), system, dtype)
    except ValueError as reason:
        assert (system, name) in ((REVIEWS, "keras"), (REVIEWS, "equinox"))
        assert "no tiny-reviews are built" in str(reason)  # noqa: PT017
        return
    require_same_learning(found, learning(ours.Peer(), system, dtype), dtype)
    if system is not GRU:  # with dropout, too
        peers.load(name, {}).training(system, dtype, system.initial_params()).step()


@named(*INSTALLED)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
@pytest.mark.parametrize(
    "shape", [LSTM_LAYER, pytest.param(GRU_LAYER, marks=slow)], ids=lambda shape: shape.cell
)
def test_every_peer_s_gradients_are_ours(name: str, shape: LayerShape, dtype: DType) -> None:
    wanted = gradients(ours.Peer(), shape, dtype)
    found = gradients(peers.load(name, {}), shape, dtype)
    missing = {"b_hn"} if shape is GRU_LAYER and name == "flax-nnx" else set()
    assert set(found) == set(wanted) - missing
    require_same_gradients(found, wanted, dtype)


def test_a_layer_s_rows_on_two_devices_have_the_gradients_of_one() -> None:
    shape = LayerShape("lstm", 7, 4, 3, 8)
    found = gradients(ours.Peer(devices=2), shape, "float32")
    wanted = gradients(ours.Peer(), shape, "float32")
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a batch of 3 does not divide among 2 devices"):
        ours.Peer(devices=2).layer(LayerShape("lstm", 7, 3, 3, 8), "float32")


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("jax-rnn", "lstm"),
        *(pytest.param("pytorch", cell, marks=slow) for cell in PEERS_CELLS if find_spec("torch")),
    ],
)
def test_stacks_of_peers_have_our_gradients(name: str, cell: CellName) -> None:
    shape = LayerShape(cell, 7, 3, 8, 8, layers=2, seed=5)
    wanted = gradients(ours.Peer(), shape, "tf32")
    found = gradients(peers.load(name, {}), shape, "tf32")
    assert set(found) == set(wanted)
    require_same_gradients(found, wanted, "float32")
    with pytest.raises(ValueError, match="it has only single layers"):
        gradients(peers.load("flax-nnx", {}), shape, "tf32")


@slow
@named("pytorch", "flax-nnx")
@pytest.mark.parametrize("system", [GRU, TINY], ids=lambda system: system.name)
def test_peers_write_the_same_and_draw_from_the_likeliest(name: str, system: System) -> None:
    peer, wanted = peers.load(name, {}), continuations(ours.Peer(), system)
    require_same_continuations(continuations(peer, system), wanted)
    assert (wanted["greedy"] == wanted["top-n 1"]).all()
    assert len(np.unique(wanted["greedy"])) > 2
    params, job = system.initial_params(), Job(64, 3, 1, temperature=2.0, top_n=3)
    model, weights = with_weights(system.model("float32"), params, "float32")
    logits_BV = np.asarray(model.apply(weights, None, job.prompts(system))[1][-1])
    rank_BV = (-logits_BV).argsort(-1).argsort(-1)
    drawn_B = peer.sampling(system, "float32", params, job).calls["write"]()[0]
    assert set(rank_BV[np.arange(job.batch), drawn_B]) == {0, 1, 2}
    written = peer.sampling(system, "bfloat16", params, Job(64, 3, 20, top_n=0)).calls["write"]()
    assert (written.shape, written.dtype) == ((20, 64), np.int32)
    assert 0 <= written.min() < written.max() < system.vocabulary_size
    assert len(np.unique(written[0])) > 2


@pytest.mark.slow
def test_the_first_loss_hangs_on_all_the_weights_below() -> None:
    for system in (POEMS, REVIEWS):
        params: Any = system.initial_params()
        first, *above = params.layers
        layers = (first._replace(w_x=-first.w_x), *above)
        whole, other = (
            ours.Peer().training(system.without_dropout(), "float32", each).loss()
            for each in (params, params._replace(layers=layers))
        )
        assert abs(whole - other) > 1e-3 * whole


def test_every_system_feeds_distinct_random_tokens() -> None:
    for system in shapes.SYSTEMS:
        inputs, targets = system.batch(1)
        assert inputs.shape == (system.sequence_length, system.batch_size)
        assert inputs.max() > system.vocabulary_size // 2
        assert (inputs != system.batch(0)[0]).any()
        if isinstance(system, System):
            assert (inputs[1:] == targets[:-1]).all()
