"""The nnx and Linen modules are `nnx.RNN` and `nn.RNN` around Flax's cells, on real steps.

Both modules share one call: what is shown of nnx's alone holds for Linen's by
`test_both_modules_are_the_pure_stack_and_one_another`.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits, cases
from flax import nnx
from interop_cases import config_of, draw_layers, normal, outputs

from lstm_jax.cells import GRUCarry, LSTMCarry, init_lstm, init_mgu
from lstm_jax.interop import linen_modules, nnx_modules
from lstm_jax.interop.arrays import directions_of
from lstm_jax.interop.flax import (
    params_from_linen,
    params_from_nnx,
    params_to_linen,
    params_to_nnx,
)
from lstm_jax.interop.plain import layers_from_dicts
from lstm_jax.plain_layers import mgu
from lstm_jax.stack import Directions

T, B, D, H = 6, 3, 3, 4
LENGTHS = np.array([6, 1, 4])
ALL = dict.fromkeys(("time_major", "return_carry", "reverse", "keep_order"), True)
REAL = (np.arange(T) < LENGTHS[:, None])[..., None]
TOLERANCE = 1e-12
CLASSES = {"lstm": "LSTM", "gru_after": "GRU", "gru_before": "GRU", "rnn": "SimpleRNN"}
CELLS = {"lstm": "OptimizedLSTMCell", "gru_after": "GRUCell", "rnn": "SimpleCell"}
FLAVOURS = ("nnx", "linen")
both = pytest.mark.parametrize("flavour", FLAVOURS)


class Side(NamedTuple):
    """One way to compute: its weights in its own form, calls on them, and them as ours."""

    weights: Any
    call: Any
    to_params: Any


def ours(flavour: str, form: str, layers: tuple[Any, ...], **options: Any) -> Side:
    """Our module with these weights."""
    name = CLASSES[form]
    if flavour == "nnx":
        module = getattr(nnx_modules, name).from_layers(layers, **options)
        return Side(module, lambda m, *inputs, **o: m(*inputs, **o), lambda m: m.to_layers())
    reset = "before" if form == "gru_before" else "after"
    options |= {"reset": reset} if name == "GRU" else {}
    one, *others = directions_of(layers[0])
    options |= {"layers": len(layers), "bidirectional": bool(others)}
    options |= {"param_dtype": one.w_x.dtype, "use_bias": one.b is not None}
    module = getattr(linen_modules, name)(H, **options)
    variables = linen_modules.variables_from_layers(layers)
    return Side(variables, module.apply, partial(linen_modules.layers_from_variables, reset=reset))


def theirs(flavour: str, form: str, layers: tuple[Any, ...], cell: str = "") -> Side:
    """Flax's own cells with the weights of one layer, inside its `RNN` or `Bidirectional`."""
    (layer,) = layers
    flax: Any = nnx if flavour == "nnx" else nn
    cell = cell or CELLS[form]
    options: dict[str, Any] = {"param_dtype": jnp.float64}
    if flavour == "nnx":
        options |= {"dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    sizes = (D, H) if flavour == "nnx" else (H,)
    rnns = [flax.RNN(getattr(flax, cell)(*sizes, **options)) for _ in range(2)]
    is_both = isinstance(layer, Directions)
    module = flax.Bidirectional(*rnns) if is_both else rnns[0]
    if flavour == "linen":
        tree = params_to_linen(layer)
        variables = {"params": tree if is_both else {"cell": tree}}
        return Side(variables, module.apply, lambda v: (params_from_linen(v["params"]),))
    tree = params_to_nnx(layer, optimized=cell != "LSTMCell")
    nnx.update(module, tree if is_both else {"cell": tree})
    graph, weights, rest = nnx.split(module, nnx.Param, ...)

    def call(weights: Any, *inputs: Any, **options: Any) -> Any:
        return nnx.merge(graph, weights, rest)(*inputs, **options)

    return Side(weights, call, lambda weights: (params_from_nnx(weights),))


def draw_for(flavour: str, form: str, bidirectional: bool = False) -> tuple[Any, ...]:
    """One layer in float64; nnx's GRU has no bias inside the reset product."""
    (layer,) = draw_layers(form, 1, bidirectional, D, H, dtype=np.float64)
    if (flavour, form) == ("nnx", "gru_after"):
        layer = layer._replace(b_hn=jnp.zeros(H))
    return (layer,)


def draw_carry(form: str, bidirectional: bool, *batch: int) -> Any:
    """In Flax's form."""
    if bidirectional:
        return draw_carry(form, False, *batch), draw_carry(form, False, *batch)
    c, h = (normal(seed, *batch, H, dtype=np.float64) for seed in (5, 6))
    return (c, h) if form == "lstm" else h


@pytest.mark.usefixtures("float64")
@cases(
    "flavour, form, bidirectional, cell",
    [
        (flavour, *rest)
        for flavour in FLAVOURS
        for rest in (
            ("lstm", True, ""), ("lstm", False, "LSTMCell"), ("gru_after", False, ""),
            ("rnn", False, ""),
        )
    ],
    ("nnx", "lstm", True, ""),
    ("linen", "gru_after", False, ""),
)  # fmt: skip
def test_values_and_gradients_are_flax_s(
    flavour: str, form: str, bidirectional: bool, cell: str
) -> None:
    layers = draw_for(flavour, form, bidirectional)
    xs = jnp.asarray(normal(1, B, T, D, dtype=np.float64))
    start = draw_carry(form, bidirectional, B)
    weight_ys = normal(2, B, T, H * (2 if bidirectional else 1), dtype=np.float64) * REAL

    def results_and_gradients(side: Side) -> Any:
        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(weights: Any, xs: Any) -> Any:
            options = {"initial_carry": start, "seq_lengths": LENGTHS, "return_carry": True}
            carry, ys = side.call(weights, xs, **options)
            total = sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(carry))
            return total + jnp.sum(weight_ys * ys), (carry, ys * REAL)

        (_, results), (dweights, dxs) = run(side.weights, xs)
        (dlayer,) = side.to_params(dweights)
        if (flavour, form) == ("nnx", "gru_after"):
            dlayer = dlayer._replace(b_hn=None)
        return results, dlayer, dxs

    expected = results_and_gradients(theirs(flavour, form, layers, cell))
    assert_near(results_and_gradients(ours(flavour, form, layers)), expected, TOLERANCE)


REVERSED = [
    ("nnx", (B,), False, False, True),
    ("nnx", (B,), False, True, False),
    ("nnx", (B,), True, False, False),
    ("nnx", (B,), True, True, True),
    ("linen", (B,), True, True, True),
    ("nnx", (), False, False, False),
    ("nnx", (2, 3), False, False, True),
    ("nnx", (2, 3), False, False, False),
    ("nnx", (2, 0), False, False, True),
]


@pytest.mark.usefixtures("float64")
@cases("flavour, batch, padded, keep_order, time_major", REVERSED, REVERSED[2], *REVERSED[4:])
def test_reversed_sequences_are_flax_s(
    flavour: str, batch: tuple[int, ...], padded: bool, keep_order: bool, time_major: bool
) -> None:
    """With any number of batch axes; with one, ours begin without a carry, theirs with zeros."""
    axis, xs = len(batch), normal(1, *batch, T, D, dtype=np.float64)
    options = {"time_major": time_major, "return_carry": True, "reverse": True}
    options |= {"keep_order": keep_order, "seq_lengths": LENGTHS if padded else None}

    def results(side: Side, start: Any) -> Any:
        call = jax.jit(partial(side.call, initial_carry=start, **options))
        carry, ys = call(side.weights, np.moveaxis(xs, axis, 0) if time_major else xs)
        ys = np.moveaxis(ys, 0, axis) if time_major else np.asarray(ys)
        return carry, ys * REAL if padded else ys

    # nnx draws even the zeros it starts from, which changes a counter and so can't be jitted.
    zeros, start = (np.zeros((B, H)), np.zeros((B, H))), draw_carry("lstm", False, *batch)
    layers, begins_anew = draw_for(flavour, "lstm"), batch == (B,)
    found = results(ours(flavour, "lstm", layers), None if begins_anew else start)
    expected = results(theirs(flavour, "lstm", layers), zeros if begins_anew else start)
    assert_near(found, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("form", "layers", "bidirectional", "use_bias"),
    [
        ("lstm", 2, True, True), ("gru_after", 1, True, True), ("gru_before", 2, False, True),
        ("gru_before", 2, True, False), ("rnn", 1, False, True),
    ],
)  # fmt: skip
def test_both_modules_are_the_pure_stack_and_one_another(
    form: str, layers: int, bidirectional: bool, use_bias: bool
) -> None:
    stack = (form, layers, bidirectional)
    drawn, xs = draw_layers(*stack, D, H, use_bias=use_bias), normal(1, B, T, D)
    config = config_of(*stack, H, use_bias=use_bias)
    expected = outputs(config, drawn, xs.swapaxes(0, 1))
    found = []
    for flavour in ("nnx", "linen"):
        side = ours(flavour, form, drawn)
        assert_same_bits(side.to_params(side.weights), drawn)
        ys = jax.jit(side.call)(side.weights, xs)
        assert_near(ys, expected.swapaxes(0, 1), 1e-6)
        reverse = jax.jit(partial(side.call, **ALL, seq_lengths=LENGTHS))
        found.append((ys, reverse(side.weights, xs.swapaxes(0, 1))))
    assert_same_bits(*found)


@both
def test_options_of_the_module_are_defaults_of_the_call(flavour: str) -> None:
    drawn, xs = draw_layers("rnn", 1, False, D, H), normal(1, T, B, D)
    plain, set_up = ours(flavour, "rnn", drawn), ours(flavour, "rnn", drawn, **ALL)
    assert_same_bits(set_up.call(set_up.weights, xs), plain.call(plain.weights, xs, **ALL))
    off, xs = dict.fromkeys(ALL, False), xs.swapaxes(0, 1)
    assert_same_bits(set_up.call(set_up.weights, xs, **off), plain.call(plain.weights, xs))


def call_of(form: str, *stack: Any, **options: Any) -> Any:
    """Our nnx module of such a stack, compiled, as a function of its call's arguments."""
    module = ours("nnx", form, draw_layers(form, *stack, D, H))
    return jax.jit(partial(module.call, module.weights, **options))


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_zeros_and_changes_nothing(reverse: bool) -> None:
    call = call_of("lstm", 1, True, return_carry=True, reverse=reverse)
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


def test_a_carry_is_flax_s_or_the_core_s_own() -> None:
    call = call_of("lstm", 2, True, return_carry=True)
    xs = normal(1, B, T, D)
    own = tuple(
        Directions(*(LSTMCarry(*normal(2 * n + m, 2, B, H)) for m in range(2))) for n in range(2)
    )
    flax_s = tuple(tuple((c, h) for h, c in layer) for layer in own)
    assert_same_bits(call(xs, initial_carry=own), call(xs, initial_carry=flax_s))
    nothing = np.zeros(B, int)
    assert_same_bits(call(xs, initial_carry=flax_s, seq_lengths=nothing)[0], flax_s)


def test_integers_stand_for_one_hot_rows() -> None:
    tokens = np.random.default_rng(0).integers(0, D, (B, T))
    call = call_of("gru_after", 1, False)
    assert_near(call(tokens), call(np.eye(D, dtype=np.float32)[tokens]), 1e-6)


@both
@pytest.mark.parametrize(("reset", "use_bias"), [("after", True), ("before", False)])
def test_weights_are_drawn_as_the_library_draws_them(
    flavour: str, reset: str, use_bias: bool
) -> None:
    options = {"layers": 2, "bidirectional": True, "reset": reset, "use_bias": use_bias}

    def drawn(seed: int) -> tuple[Any, ...]:
        if flavour == "nnx":
            return nnx_modules.GRU(D, H, rngs=nnx.Rngs(seed), **options).to_layers()
        init = jax.jit(linen_modules.GRU(H, **options).init)
        variables = init(jax.random.key(seed), jnp.zeros((B, T, D)))
        return linen_modules.layers_from_variables(variables, reset=reset)

    layers, others = map(drawn, (0, 1))
    expected = draw_layers(f"gru_{reset}", 2, True, D, H, use_bias=use_bias)
    assert jax.tree.map(jnp.shape, layers) == jax.tree.map(jnp.shape, expected)
    assert np.any(layers[0].forward.w_x != layers[0].backward.w_x)
    assert np.any(layers[0].forward.w_x != others[0].forward.w_x)
    for array in jax.tree.leaves(layers):
        assert 0 < jnp.abs(array).max() <= 2 / np.sqrt(H)


def test_a_zero_carry_draws_nothing_and_no_module_keeps_random_state() -> None:
    xs = jnp.zeros((B, T, D))
    module = nnx_modules.LSTM(D, H, layers=2, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(module, nnx.RngState))
    linen = ours("linen", "lstm", draw_layers("lstm", 1, False, D, H))
    for call, weights in ((lambda module, xs: module(xs), module), (linen.call, linen.weights)):
        program = str(jax.make_jaxpr(call)(weights, xs))
        assert not [word for word in ("random_bits", "threefry", "random_wrap") if word in program]


def test_nnx_transforms_take_the_module_whose_state_has_plain_names() -> None:
    module = nnx_modules.GRU(D, H, bidirectional=True, reset="before", rngs=nnx.Rngs(0))
    xs = jnp.asarray(normal(1, B, T, D))

    def loss(module: Any) -> Any:
        return jnp.sum(module(xs) ** 2)

    by_jax = jax.jit(jax.grad(loss))(module)
    by_nnx = nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(module))
    named = {str(index): layer for index, layer in by_nnx["layers"].items()}
    assert_near(by_jax.to_layers(), layers_from_dicts(named), 1e-6)
    graph, state = nnx.split(module)
    assert_same_bits(nnx.merge(graph, state)(xs), module(xs))


def test_flax_s_own_bidirectional_takes_our_modules() -> None:
    forward, backward = (draw_layers("lstm", 1, False, D, H, seed) for seed in (0, 1))
    xs = normal(1, B, T, D)
    whole = nnx_modules.LSTM.from_layers((Directions(*forward, *backward),))
    expected = whole(xs, seq_lengths=LENGTHS)
    of_nnx = map(nnx_modules.LSTM.from_layers, (forward, backward))
    assert_near(nnx.Bidirectional(*of_nnx)(xs, seq_lengths=LENGTHS), expected, 1e-6)
    linen = nn.Bidirectional(linen_modules.LSTM(H), linen_modules.LSTM(H))
    params = {
        name: linen_modules.variables_from_layers(layers)["params"]
        for name, layers in (("forward_rnn", forward), ("backward_rnn", backward))
    }
    assert_near(linen.apply({"params": params}, xs, seq_lengths=LENGTHS), expected, 1e-6)


STATE = r"\(\(3, 4\), \(3, 4\)\)"
ZEROS = np.zeros((B, H))
ONE, TWO, BOTH = ((1, False), (2, False), (1, True))


@pytest.mark.parametrize(
    ("stack", "shape", "options", "message"),
    [
        (ONE, (D,), {}, r"expected \[\.\.\., T, D\]"),
        (ONE, (B, T, D + 1), {}, r"of shape \(3, 6, 4\); expected \[B, T, 3\]"),
        (
            ONE,
            (T, B, D + 1),
            {"time_major": True},
            r"inputs of shape \(6, 3, 4\); expected \[T, B, 3\]",
        ),
        (ONE, (B, T, D), {"seq_lengths": np.ones(2, int)}, r"integers of shape \(3,\)"),
        (ONE, (B, T, D), {"seq_lengths": np.ones(3)}, "expected integers"),
        (ONE, (B, T, D), {"initial_carry": ()}, rf"expected {STATE}: \(c, h\) of an LSTM"),
        (ONE, (B, T, D), {"initial_carry": ZEROS}, rf"shapes \(3, 4\); expected {STATE}:"),
        (TWO, (B, T, D), {"initial_carry": (ZEROS,) * 2}, rf"d \({STATE}, {STATE}\):"),
        (BOTH, (B, T, D), {"initial_carry": ((),)}, rf"\(\(\),\); expected \({STATE}, {STATE}\):"),
    ],
)
def test_calls_that_do_not_fit_are_refused_in_words(
    stack: tuple[int, bool], shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    module = nnx_modules.LSTM.from_layers(draw_layers("lstm", *stack, D, H))
    with pytest.raises(ValueError, match=message):
        module(normal(0, *shape), **options)


def test_weights_of_other_modules_are_refused() -> None:
    one = draw_layers("lstm", 1, False, D, H)
    uneven = (*one, *draw_layers("lstm", 1, False, H, H + 1))
    projected = (init_lstm(jax.random.key(0), D, H, projection_size=2),)
    linen, drawn = linen_modules.LSTM, partial(nnx_modules.LSTM, D, rngs=nnx.Rngs(0))
    of_lstm, of_gru = nnx_modules.LSTM.from_layers, nnx_modules.GRU.from_layers
    for make, message in (
        (lambda: of_gru(one), "of the cell lstm; GRU needs gru"),
        (lambda: of_lstm(uneven), r"hidden sizes \[4, 5\]"),
        (lambda: of_lstm(one[0]), "the layers are LSTMParams; give a tuple"),
        (lambda: of_lstm(projected), "projection of its hidden state, which a module lacks"),
        (lambda: nnx_modules.LSTM(D, H), "rngs is None"),
        (lambda: linen(H).init(jax.random.key(0), np.zeros((B, T), int)), "in_features is None"),
        (lambda: linen(H, reset="before"), "reset"),
        (lambda: drawn(H, reset="before"), "reset"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make()


@pytest.mark.parametrize("form", CELLS)
def test_linen_s_names_are_those_of_its_cells_which_always_have_biases(form: str) -> None:
    (layer,) = draw_layers(form, 1, False, D, H, use_bias=False)
    module = nn.RNN(getattr(nn, CELLS[form])(H))
    drawn = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((B, T, D)))["params"]
    assert jax.tree.map(jnp.shape, {"cell": params_to_linen(layer)}) == jax.tree.map(
        jnp.shape, drawn
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reset_gate", [True, False])
def test_an_mgu_is_linen_s(reset_gate: bool) -> None:
    """Flax's nnx has none."""
    params = init_mgu(jax.random.key(0), D, H, dtype=jnp.float64)
    params = params if reset_gate else params._replace(b_hn=None)
    tree = params_to_linen(params)
    assert_same_bits(params_from_linen({"cell": tree}), params)
    xs, start = normal(1, B, T, D, dtype=np.float64), normal(2, B, H, dtype=np.float64)
    module = nn.RNN(nn.MGUCell(H, reset_gate=reset_gate, param_dtype=jnp.float64))
    expected = jax.jit(partial(module.apply, return_carry=True))(
        {"params": {"cell": tree}}, xs, initial_carry=start
    )
    carry, ys = jax.jit(mgu)(params, GRUCarry(jnp.asarray(start)), jnp.moveaxis(xs, 1, 0))
    assert_near((carry.h, jnp.moveaxis(ys, 0, 1)), expected, TOLERANCE)
