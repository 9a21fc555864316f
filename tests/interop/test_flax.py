"""Weights to and from Flax's cells: round trips keep every bit, and Flax's own run agrees.

As it was recorded; live with `--slow`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import (
    RESET_AFTER,
    assert_near,
    assert_same_bits,
    by_path,
    config_of,
    draw_layers,
    from_paths,
    normal,
    outputs,
)
from recorded import Arrays, Peer

from lstm_jax.interop.flax import (
    params_from_linen,
    params_from_nnx,
    params_to_linen,
    params_to_nnx,
)

PEERS = ("flax", "jax")
LINEN = {
    "OptimizedLSTMCell": "lstm",
    "LSTMCell": "lstm",
    "GRUCell": "gru_after",
    "SimpleCell": "rnn",
}
cells_and_directions = pytest.mark.parametrize(
    ("name", "bidirectional"), [(name, name == "GRUCell") for name in LINEN] + [("GRUCell", False)]
)
directions = pytest.mark.parametrize("bidirectional", [False, True])
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


def without_b_hn(layer: Any) -> Any:
    """nnx's GRU has no such bias."""
    zero = jnp.zeros_like
    return jax.tree.map(
        lambda p: p._replace(b_hn=zero(p.b_hn)) if hasattr(p, "b_hn") else p,
        layer,
        is_leaf=lambda p: hasattr(p, "w_x"),
    )


def random_like(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    drawn = [normal(n, *np.shape(a), dtype=np.float64) for n, a in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


@directions
@pytest.mark.parametrize("form", RESET_AFTER)
@settings(max_examples=4)
@given(sizes=sizes, seed=st.integers(0, 2**31 - 1))
def test_our_layers_come_back_bit_for_bit(
    form: str, bidirectional: bool, sizes: tuple[int, int], seed: int
) -> None:
    (layer,) = draw_layers(form, 1, bidirectional, *sizes, seed)
    assert_same_bits(params_from_linen(params_to_linen(layer)), layer)
    layer = without_b_hn(layer)
    for optimized in (False, True):
        assert_same_bits(params_from_nnx(params_to_nnx(layer, optimized=optimized)), layer)


@pytest.mark.usefixtures("float64")
@cells_and_directions
def test_linen_s_cell_computes_the_same_and_comes_back_bit_for_bit(
    peer: Peer, name: str, bidirectional: bool
) -> None:
    def theirs() -> Arrays:
        rnns = [nn.RNN(getattr(nn, name)(4, param_dtype=jnp.float64)) for _ in range(2)]
        module = nn.Bidirectional(*rnns, time_major=True) if bidirectional else rnns[0]
        xs = normal(1, 5, 2, 3, dtype=np.float64)
        variables = random_like(jax.eval_shape(module.init, jax.random.key(0), xs))
        ys = jax.jit(lambda v, xs: module.apply(v, xs, time_major=True))(variables, xs)
        return by_path({"xs": xs, "ys": ys, "params": variables["params"]})

    run = from_paths(peer(str((name, bidirectional)), theirs))
    params = params_from_linen(run["params"])
    found = outputs(config_of(LINEN[name], 1, bidirectional, 4), (params,), run["xs"])
    assert_near(found, run["ys"], 1e-12)
    tree = params_to_linen(params)
    assert_same_bits(tree if bidirectional else {"cell": tree}, run["params"])


@pytest.mark.usefixtures("float64")
@cells_and_directions
def test_nnx_s_cell_computes_the_same_and_comes_back_bit_for_bit(
    peer: Peer, name: str, bidirectional: bool
) -> None:
    def theirs() -> Arrays:
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        rnns = [nnx.RNN(getattr(nnx, name)(3, 4, **options)) for _ in range(2)]
        module = nnx.Bidirectional(*rnns) if bidirectional else rnns[0]
        tree = random_like(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
        nnx.update(module, tree)
        assert_same_bits(params_from_nnx(nnx.state(module, nnx.Param)), params_from_nnx(tree))
        xs = normal(1, 5, 2, 3, dtype=np.float64)
        ys = nnx.jit(lambda module, xs: module(xs, time_major=True))(module, xs)
        return by_path({"xs": xs, "ys": ys, "params": tree})

    run = from_paths(peer(str((name, bidirectional)), theirs))
    params = params_from_nnx(run["params"])
    found = outputs(config_of(LINEN[name], 1, bidirectional, 4), (params,), run["xs"])
    assert_near(found, run["ys"], 1e-12)
    back = params_to_nnx(params, optimized=name != "LSTMCell")
    assert_same_bits(back if bidirectional else {"cell": back}, run["params"])


def test_a_state_of_nnx_s_own_is_read_as_its_arrays_are() -> None:
    options = {"param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    state = nnx.state(nnx.RNN(nnx.SimpleCell(3, 4, **options)), nnx.Param)
    assert_same_bits(params_from_nnx(state), params_from_nnx(nnx.to_pure_dict(state)))


def test_what_flax_has_not_is_not_exported() -> None:
    (before,) = draw_layers("gru_before", 1, False, 3, 4)
    for export in (params_to_linen, params_to_nnx):
        with pytest.raises(ValueError, match="no counterpart in Flax"):
            export(before)
    (after,) = draw_layers("gru_after", 1, False, 3, 4)
    with pytest.raises(ValueError, match="b_hn that is not zero"):
        params_to_nnx(after)


def kernel(*shape: int) -> dict[str, np.ndarray]:
    return {"kernel": np.ones(shape, np.float32)}


def both(*shape: int, bias: int) -> dict[str, np.ndarray]:
    return {**kernel(*shape), "bias": np.ones(bias, np.float32)}


@pytest.mark.parametrize(
    ("convert", "tree", "message"),
    [
        (params_from_linen, {"dense_i": kernel(3, 4)}, "has dense_i; expected the names of one Li"),
        (params_from_nnx, {"i": kernel(3, 4)}, "has i; expected the names of one nnx cell"),
        (
            params_from_linen,
            {"i": both(3, 4, bias=5), "h": kernel(4, 4)},
            r"biases together has shape \(5,\)",
        ),
        (params_from_linen, {"i": kernel(3, 4), "h": kernel(4, 4)}, "i lacks bias"),
        (params_from_linen, {"i": np.ones((3, 4)), "h": kernel(4, 4)}, "i is ndarray; expected"),
        (params_from_linen, {"i": {}, "h": kernel(4, 4)}, "i lacks kernel"),
        (
            params_from_nnx,
            {"dense_i": kernel(3, 12), "dense_h": both(4, 16, bias=16)},
            r"inputs' kernels together has shape \(3, 12\); expected \(3, 16\)",
        ),
        (
            params_from_linen,
            {f"i{g}": kernel(3, 4) for g in "ifgo"} | {f"h{g}": both(4, 5, bias=5) for g in "ifgo"},
            r"kernels together has shape \(4, 20\); expected \(4, 16\)",
        ),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_in_words(
    convert: Any, tree: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(tree)
