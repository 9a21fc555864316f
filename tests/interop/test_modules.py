"""The nnx and Linen modules are `nnx.RNN` and `nn.RNN` around Flax's cells, on real steps.

Whose values were recorded; live with `--slow`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop_cases import (
    assert_near,
    assert_same_bits,
    config_of,
    draw_layers,
    normal,
    numbered,
    outputs,
)
from recorded import Arrays, Peer

from lstm_jax.cells import LSTMCarry
from lstm_jax.interop import linen_modules, nnx_modules
from lstm_jax.interop import modules as sequences
from lstm_jax.interop.flax import (
    params_from_linen,
    params_from_nnx,
    params_to_linen,
    params_to_nnx,
)
from lstm_jax.interop.plain import _layer_from_dict as layer_from_dict
from lstm_jax.stack import Directions

PEERS = ("flax", "jax")
T, B, D, H = 6, 3, 3, 4
LENGTHS = np.array([6, 1, 4])
REAL = (np.arange(T) < LENGTHS[:, None])[..., None]
TOLERANCE = 1e-12
CLASSES = {"lstm": "LSTM", "gru_after": "GRU", "gru_before": "GRU", "rnn": "SimpleRNN"}
CELLS = {"lstm": "OptimizedLSTMCell", "gru_after": "GRUCell", "rnn": "SimpleCell"}
both = pytest.mark.parametrize("flavour", ["nnx", "linen"])


class Side(NamedTuple):
    """One way to compute: its weights in its own form, and calls on them."""

    weights: Any
    call: Any
    to_params: Any


def like_nnx(layer: Any, form: str) -> Any:
    """A layer that nnx's cells can hold: their GRU has no bias inside the reset product."""
    if form != "gru_after":
        return layer
    if isinstance(layer, Directions):
        return Directions(*(like_nnx(params, form) for params in layer))
    return layer._replace(b_hn=jnp.zeros_like(layer.b_hn))


def drop_b_hn(layer: Any) -> Any:
    """Gradients that both sides have: nnx's GRU has none of a `b_hn`."""
    if isinstance(layer, Directions):
        return Directions(*map(drop_b_hn, layer))
    return layer._replace(b_hn=None) if hasattr(layer, "b_hn") else layer


def nnx_ours(form: str, layer: Any) -> Side:
    ours = getattr(nnx_modules, CLASSES[form]).from_layers((like_nnx(layer, form),))
    return Side(
        ours, lambda module, *a, **o: module(*a, **o), lambda m: drop_b_hn(m.to_layers()[0])
    )


def nnx_theirs(form: str, layer: Any) -> Side:
    layer = like_nnx(layer, form)
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    rnns = [nnx.RNN(getattr(nnx, CELLS[form])(D, H, **options)) for _ in range(2)]
    two = isinstance(layer, Directions)
    theirs = nnx.Bidirectional(*rnns) if two else rnns[0]
    tree = params_to_nnx(layer)
    nnx.update(theirs, tree if two else {"cell": tree})
    graph, weights, rest = nnx.split(theirs, nnx.Param, ...)

    def call(weights: Any, *inputs: Any, **options: Any) -> Any:
        return nnx.merge(graph, weights, rest)(*inputs, **options)

    return Side(weights, call, lambda weights: drop_b_hn(params_from_nnx(weights)))


def linen_ours(form: str, layer: Any) -> Side:
    two = isinstance(layer, Directions)
    ours = getattr(linen_modules, CLASSES[form])(H, bidirectional=two, param_dtype=jnp.float64)
    weights = linen_modules.variables_from_layers((layer,))
    return Side(weights, ours.apply, lambda v: linen_modules.layers_from_variables(v)[0])


def linen_theirs(form: str, layer: Any) -> Side:
    rnns = [nn.RNN(getattr(nn, CELLS[form])(H, param_dtype=jnp.float64)) for _ in range(2)]
    two = isinstance(layer, Directions)
    theirs = nn.Bidirectional(*rnns) if two else rnns[0]
    tree = params_to_linen(layer)
    weights = {"params": tree if two else {"cell": tree}}
    return Side(weights, theirs.apply, lambda v: params_from_linen(v["params"]))


def side_of(whose: str, flavour: str, form: str, bidirectional: bool) -> Side:
    """Ours or theirs of one layer in float64."""
    makers = {
        ("nnx", "ours"): nnx_ours,
        ("nnx", "theirs"): nnx_theirs,
        ("linen", "ours"): linen_ours,
        ("linen", "theirs"): linen_theirs,
    }
    (layer,) = draw_layers(form, 1, bidirectional, D, H, dtype=np.float64)
    return makers[flavour, whose](form, layer)


def draw_carry(form: str, bidirectional: bool) -> Any:
    """In Flax's form."""
    if bidirectional:
        return draw_carry(form, False), draw_carry(form, False)
    c, h = normal(5, B, H, dtype=np.float64), normal(6, B, H, dtype=np.float64)
    return (c, h) if form == "lstm" else h


@pytest.mark.usefixtures("float64")
@both
@pytest.mark.parametrize(
    ("form", "bidirectional"),
    [("lstm", False), ("lstm", True), ("gru_after", False), ("rnn", False)],
)
def test_values_and_gradients_are_flax_s(
    peer: Peer, flavour: str, form: str, bidirectional: bool
) -> None:
    variant = (flavour, form, bidirectional)
    xs = jnp.asarray(normal(1, B, T, D, dtype=np.float64))
    start = draw_carry(form, bidirectional)
    weight_ys = normal(2, B, T, H * (2 if bidirectional else 1), dtype=np.float64) * REAL

    @partial(jax.jit, static_argnums=0)
    def results_and_gradients(side: Any, weights: Any, xs: Any, start: Any) -> Any:
        def loss(weights: Any, xs: Any) -> Any:
            carry, ys = side(
                weights, xs, initial_carry=start, seq_lengths=LENGTHS, return_carry=True
            )
            total = jnp.sum(weight_ys * ys)
            return total + sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(carry)), (carry, ys)

        (_, results), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, xs)
        return results, gradients

    def theirs() -> Arrays:
        side = side_of("theirs", *variant)
        (carry, ys), (dweights, dxs) = results_and_gradients(side.call, side.weights, xs, start)
        return numbered((carry, np.asarray(ys) * REAL, side.to_params(dweights), dxs))

    ours = side_of("ours", *variant)
    (carry, ys), (dweights, dxs) = results_and_gradients(ours.call, ours.weights, xs, start)
    found = numbered((carry, ys, ours.to_params(dweights), dxs))
    assert_near(found, peer(str(variant), theirs), TOLERANCE)


@pytest.mark.usefixtures("float64")
@both
@pytest.mark.parametrize(
    ("padded", "keep_order", "time_major"),
    [(False, False, True), (False, True, False), (True, False, False), (True, True, True)],
)
def test_reversed_sequences_are_flax_s(
    peer: Peer, flavour: str, padded: bool, keep_order: bool, time_major: bool
) -> None:
    xs = normal(1, B, T, D, dtype=np.float64)
    options = {
        "reverse": True,
        "keep_order": keep_order,
        "time_major": time_major,
        "return_carry": True,
        "seq_lengths": LENGTHS if padded else None,
    }

    def results(whose: str, start: Any) -> tuple[Any, np.ndarray]:
        side = side_of(whose, flavour, "lstm", False)
        call = jax.jit(partial(side.call, initial_carry=start, **options))
        carry, ys = call(side.weights, np.swapaxes(xs, 0, 1) if time_major else xs)
        ys = np.swapaxes(ys, 0, 1) if time_major else np.asarray(ys)
        return carry, ys * REAL if padded else ys

    def theirs() -> Arrays:
        # nnx draws even the zeros it starts from, which changes a counter and so can't be jitted.
        carry, ys = results("theirs", (np.zeros((B, H)), np.zeros((B, H))))
        return numbered((carry, ys))

    their = peer(str((flavour, padded, keep_order, time_major)), theirs)
    assert_near(numbered(results("ours", None)), their, TOLERANCE)


def module_calls(flavour: str, form: str, layers: tuple[Any, ...], **options: Any) -> Any:
    """Our module with these weights, as a function of its call's arguments."""
    if flavour == "nnx":
        options.pop("in_features", None)
        return getattr(nnx_modules, CLASSES[form]).from_layers(layers, **options)
    if form == "gru_before":
        options["reset"] = "before"
    module = getattr(linen_modules, CLASSES[form])(
        H, layers=len(layers), bidirectional=isinstance(layers[0], Directions), **options
    )
    return partial(module.apply, linen_modules.variables_from_layers(layers))


@both
@pytest.mark.parametrize(
    ("form", "layers", "bidirectional"),
    [("lstm", 3, True), ("gru_after", 1, True), ("gru_before", 2, False), ("rnn", 1, False)],
)
def test_a_module_is_the_pure_stack(
    flavour: str, form: str, layers: int, bidirectional: bool
) -> None:
    drawn = draw_layers(form, layers, bidirectional, D, H)
    xs = normal(1, B, T, D)
    found = jax.jit(module_calls(flavour, form, drawn))(xs)
    expected = outputs(config_of(form, layers, bidirectional, H), drawn, xs.swapaxes(0, 1))
    assert_near(found, expected.swapaxes(0, 1), 1e-6)


@both
def test_options_of_the_module_are_defaults_of_the_call(flavour: str) -> None:
    drawn = draw_layers("rnn", 1, False, D, H)
    options = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True}
    xs = normal(1, T, B, D)
    plain = module_calls(flavour, "rnn", drawn)
    set_up = module_calls(flavour, "rnn", drawn, **options)
    assert_same_bits(set_up(xs), plain(xs, **options))
    off = dict.fromkeys(options, False)
    assert_same_bits(set_up(xs.swapaxes(0, 1), **off), plain(xs.swapaxes(0, 1)))


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_zeros_and_changes_nothing(flavour: str, reverse: bool) -> None:
    module = module_calls(flavour, "lstm", draw_layers("lstm", 1, True, D, H))
    call = jax.jit(partial(module, return_carry=True, reverse=reverse))
    xs = normal(1, B, T, D)
    carry, ys = call(xs, seq_lengths=np.array([T, 0, T + 3]))
    spoilt = xs.copy()
    spoilt[1] = np.nan
    assert_same_bits(call(spoilt, seq_lengths=np.array([T, 0, T + 3])), (carry, ys))
    np.testing.assert_array_equal(ys[1], np.zeros((T, 2 * H)))
    for array in jax.tree.leaves(carry):
        np.testing.assert_array_equal(array[1], np.zeros(H))
    whole = call(xs, seq_lengths=np.array([T, T, T]))[1]
    assert_same_bits((ys[0], ys[2]), (whole[0], whole[2]))


@both
def test_a_sequence_in_two_pieces_is_the_whole(flavour: str) -> None:
    module = module_calls(flavour, "gru_before", draw_layers("gru_before", 2, False, D, H))
    call = jax.jit(partial(module, return_carry=True))
    xs = normal(1, B, T, D)
    carry, whole = call(xs)
    between, first = call(xs[:, : T // 2])
    end, second = call(xs[:, T // 2 :], initial_carry=between)
    assert_near(jnp.concatenate([first, second], axis=1), whole, 1e-6)
    assert_near(end, carry, 1e-6)


@both
def test_integers_stand_for_one_hot_rows(flavour: str) -> None:
    options = {"in_features": D} if flavour == "linen" else {}
    call = module_calls(flavour, "gru_after", draw_layers("gru_after", 1, False, D, H), **options)
    tokens = np.random.default_rng(0).integers(0, D, (B, T))
    one_hot = np.eye(D, dtype=np.float32)[tokens]
    assert_near(call(tokens), call(one_hot), 1e-6)


@both
def test_weights_are_drawn_as_the_library_draws_them(flavour: str) -> None:
    form = "gru_after"
    options = {"layers": 2, "bidirectional": True}
    xs = jnp.zeros((B, T, D))
    if flavour == "nnx":
        module = getattr(nnx_modules, CLASSES[form])(D, H, rngs=nnx.Rngs(0), **options)
        other = getattr(nnx_modules, CLASSES[form])(D, H, rngs=nnx.Rngs(1), **options)
        layers, others = module.to_layers(), other.to_layers()
    else:
        module = getattr(linen_modules, CLASSES[form])(H, **options)
        layers, others = (
            linen_modules.layers_from_variables(module.init(jax.random.key(seed), xs))
            for seed in (0, 1)
        )
    expected = draw_layers(form, 2, True, D, H)
    assert jax.tree.map(jnp.shape, layers) == jax.tree.map(jnp.shape, expected)
    first, second = layers[0].forward.w_x, layers[0].backward.w_x
    assert np.any(first != second)
    assert np.any(first != others[0].forward.w_x)
    for array in jax.tree.leaves((layers[0].forward, layers[1].backward)):
        assert 0 < jnp.abs(array).max() <= 2 / np.sqrt(H)


@pytest.mark.usefixtures("float64")
@both
@pytest.mark.parametrize(
    ("batch", "time_major"), [((), False), ((2, 3), True), ((2, 3), False), ((2, 0), True)]
)
def test_any_number_of_batch_axes_is_flax_s(
    flavour: str, batch: tuple[int, ...], time_major: bool
) -> None:
    ours, theirs = (side_of(whose, flavour, "lstm", False) for whose in ("ours", "theirs"))
    xs = normal(1, *batch, T, D, dtype=np.float64)
    if time_major:
        xs = np.moveaxis(xs, len(batch), 0)
    start = tuple(normal(seed, *batch, H, dtype=np.float64) for seed in (2, 3))
    options = {"time_major": time_major, "reverse": True, "return_carry": True}
    (carry, ys), expected = (
        jax.jit(partial(side.call, initial_carry=start, **options))(side.weights, xs)
        for side in (ours, theirs)
    )
    assert_near((carry, ys), expected, TOLERANCE)


def test_carries_of_several_layers_and_the_core_s_own_are_taken() -> None:
    config = config_of("lstm", 2, True, H)
    each = iter(range(8))
    own = tuple(
        Directions(*(LSTMCarry(normal(next(each), B, H), normal(next(each), B, H)) for _ in "fb"))
        for _ in "01"
    )
    carry = sequences._carry_out(config, own, (B,))
    assert_same_bits(carry, tuple(tuple((c, h) for h, c in layer) for layer in own))
    for taken in (carry, own):
        assert_same_bits(sequences._carry_in(config, taken, (B,)), own)
    for wrong, message in ((carry[:1], "tuple of 1 for 2 layers"), (own[0][0].h, "no tuple for 2")):
        with pytest.raises(ValueError, match=message):
            sequences._carry_in(config, wrong, (B,))


def random_primitives(function: Any, *arguments: Any) -> list[str]:
    text = str(jax.make_jaxpr(function)(*arguments))
    return [word for word in ("random_bits", "threefry2x32", "random_wrap") if word in text]


def test_a_zero_carry_draws_nothing_and_no_module_keeps_random_state() -> None:
    xs = jnp.zeros((B, T, D))
    module = nnx_modules.LSTM(D, H, layers=2, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(module, nnx.RngState))
    assert not random_primitives(lambda module, xs: module(xs), module, xs)
    theirs = nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0)))
    assert jax.tree.leaves(nnx.state(theirs, nnx.RngState))
    linen = linen_modules.LSTM(H)
    variables = linen.init(jax.random.key(0), xs)
    assert not random_primitives(linen.apply, variables, xs)


def test_nnx_transforms_take_the_module() -> None:
    module = nnx_modules.GRU(D, H, bidirectional=True, reset="before", rngs=nnx.Rngs(0))
    xs = jnp.asarray(normal(1, B, T, D))

    def loss(module: Any) -> Any:
        return jnp.sum(module(xs) ** 2)

    by_jax = jax.jit(jax.grad(loss))(module)
    by_nnx = nnx.jit(nnx.grad(loss))(module)
    assert_near(by_jax.to_layers(), params_of(by_nnx), 1e-6)
    state = nnx.to_pure_dict(nnx.state(module))
    assert state["layers"][0]["forward"]["b"].shape == (3 * H,)
    graph, state = nnx.split(module)
    assert_same_bits(nnx.merge(graph, state)(xs), module(xs))


def params_of(state: Any) -> Any:
    """An nnx state of gradients as the stack's parameters."""
    layers = nnx.to_pure_dict(state)["layers"]
    return tuple(layer_from_dict(layers[index]) for index in sorted(layers))


def test_flax_s_own_bidirectional_takes_our_modules() -> None:
    forward, backward = (draw_layers("lstm", 1, False, D, H, seed) for seed in (0, 1))
    xs = normal(1, B, T, D)
    both = (Directions(forward[0], backward[0]),)
    expected = module_calls("nnx", "lstm", both)(xs, seq_lengths=LENGTHS)
    theirs = nnx.Bidirectional(
        *(nnx_modules.LSTM.from_layers(layers) for layers in (forward, backward))
    )
    assert_near(theirs(xs, seq_lengths=LENGTHS), expected, 1e-6)
    linen = nn.Bidirectional(linen_modules.LSTM(H), linen_modules.LSTM(H))
    variables = {
        "params": {
            f"{name}_rnn": linen_modules.variables_from_layers(layers)["params"]
            for name, layers in (("forward", forward), ("backward", backward))
        }
    }
    assert_near(linen.apply(variables, xs, seq_lengths=LENGTHS), expected, 1e-6)


@both
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (normal(0, D), {}, r"expected \[\.\.\., T, D\]"),
        (normal(0, B, T, D + 1), {}, r"expected \[T, B, 3\]"),
        (normal(0, B, T, D), {"seq_lengths": np.ones((2,), int)}, r"integers of shape \(3,\)"),
        (normal(0, B, T, D), {"seq_lengths": np.ones((3,))}, "expected integers"),
        (normal(0, B, T, D), {"initial_carry": ()}, r"a tuple \(c, h\), each of shape \(3, 4\)"),
        (normal(0, B, T, D), {"initial_carry": np.zeros((B, H))}, r"has \(3, 4\) for a layer of"),
    ],
)
def test_calls_that_do_not_fit_are_refused_in_words(
    flavour: str, arguments: Any, options: dict[str, Any], message: str
) -> None:
    call = module_calls(flavour, "lstm", draw_layers("lstm", 1, False, D, H), in_features=D)
    with pytest.raises(ValueError, match=message):
        call(arguments, **options)


@both
def test_a_carry_of_one_layer_is_not_taken_for_two(flavour: str) -> None:
    call = module_calls(flavour, "lstm", draw_layers("lstm", 2, False, D, H), in_features=D)
    zeros = np.zeros((B, H))
    with pytest.raises(ValueError, match=r"each of shape \(3, 4\), and 2 layers a tuple of these"):
        call(normal(0, B, T, D), initial_carry=(zeros, zeros))


def test_weights_of_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="of the cell lstm; GRU needs gru"):
        nnx_modules.GRU.from_layers(draw_layers("lstm", 1, False, D, H))
    uneven = (*draw_layers("lstm", 1, False, D, H), *draw_layers("lstm", 1, False, H, H + 1))
    with pytest.raises(ValueError, match=r"hidden sizes \[4, 5\]"):
        nnx_modules.LSTM.from_layers(uneven)
    with pytest.raises(ValueError, match="rngs is None"):
        nnx_modules.LSTM(D, H)
    with pytest.raises(ValueError, match="in_features is None"):
        linen_modules.LSTM(H).init(jax.random.key(0), np.zeros((B, T), int))
