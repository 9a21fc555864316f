"""`backend="cudnn"`: on a CPU by the reference implementation of `jax.experimental.rnn`."""

import importlib.util
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_message,
    assert_near,
    draw,
    equations,
    normals_like,
    run,
    run_with_gradients,
    second_order,
    slow,
    weighted,
)
from jax.experimental import rnn
from jax.sharding import Mesh, PartitionSpec
from jaxlib import gpu_rnn

from lstm_jax.kernels import cudnn
from lstm_jax.recurrence import gru, layer, lstm
from lstm_jax.stack import StackConfig, init_stack, run_stack

T, B, D, H = SHAPE = (5, 3, 4, 3)


def _reference(how: Any, lengths: Any, x: Any, h: Any, c: Any, w: Any) -> Any:
    sizes, (dropout, bidirectional) = how[:3], how[3:5]
    parts = rnn.unpack_lstm_weights(w, *sizes, bidirectional)
    ys, h, c = rnn.lstm_ref(x, h, c, *parts, lengths, *sizes, dropout, bidirectional)
    is_real = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
    # In cuDNN nothing comes of a row without a step, and anything may come after the last one.
    h, c = (jnp.where(lengths[None, :, None] > 0, a, jnp.nan) for a in (h, c))
    return jnp.where(is_real, ys, 7.0), h, c


def _forward(x: Any, h: Any, c: Any, w: Any, lengths: Any, *how: Any) -> Any:
    inputs = (x, h, c, w)
    return _reference(how, lengths, *inputs), (lengths, inputs)


def _backward(*given: Any) -> Any:
    *how, (lengths, inputs), gradients = given
    _, pull = jax.vjp(partial(_reference, how, lengths), *inputs)
    return *pull(gradients), None


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnn, "lstm_fwd", _forward)
    monkeypatch.setattr(rnn, "lstm_bwd", _backward)
    monkeypatch.setattr(cudnn, "require_gpu", lambda: None)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as with a GPU, whose cuDNN says how much room it needs; it cannot be run."""
    name = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(gpu_rnn, name, lambda *given: (64, 64), raising=False)
    monkeypatch.setattr(cudnn, "require_gpu", lambda: None)


@slow
@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize(
    ("masked", "reverse", "tokens", "remat"),
    [
        (False, False, False, 2),
        (False, True, True, None),
        (True, False, True, None),
        (True, True, False, 2),
    ],
)
def test_it_is_the_scan(masked: bool, reverse: bool, tokens: bool, remat: int | None) -> None:
    """Values and gradients; masks have any pattern, and rows without a real step."""
    params, carry, xs = draw("lstm", 0, shape=SHAPE)
    mask = np.random.default_rng(0).random((T, B)) < 0.6
    mask[:, 0] = False
    options = {"mask": mask} if masked else {}
    inputs = jnp.argmax(xs, -1) if tokens else jnp.where(mask[..., None] | (not masked), xs, np.nan)
    how = partial(run_with_gradients, params, carry, inputs, reverse=reverse, **options)
    assert_near(how(backend="cudnn", remat=remat), how(backend="scan"), 1e-5)


@slow
@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("tokens", [False, True])
def test_a_stack_of_both_directions_is_the_scans(tokens: bool) -> None:
    config = {"layers": 2, "hidden_size": H, "bidirectional": True, "dropout": 0.5}
    layers = init_stack(jax.random.key(0), StackConfig(**config), D)
    xs = normals_like(1, jnp.zeros((T, B, D)))
    found, expected = (
        run_stack(
            StackConfig(**config, **options), layers, None, jnp.argmax(xs, -1) if tokens else xs,
            mask=np.arange(T)[:, None] < np.array([5, 2, 0]), dropout_key=jax.random.key(2),
        )
        for options in ({"backend": "cudnn", "directions_at_once": True}, {"backend": "scan"})
    )  # fmt: skip
    assert_near(found, expected, 1e-5)


@pytest.mark.usefixtures("by_reference")
def test_what_cudnn_does_not_support_is_refused() -> None:
    params, carry, xs = draw("lstm", shape=SHAPE)
    by_cudnn = partial(lstm, backend="cudnn")
    unsupported = "backend is 'cudnn', which does not support"
    bits = jnp.ones((T, B), bool)
    assert_message(lambda: by_cudnn(params, carry, xs, resets=bits), f"{unsupported} resets")
    assert_message(lambda: by_cudnn(params, carry, xs, unroll=2), f"{unsupported} unroll")
    narrow = partial(by_cudnn, params, carry, xs, compute_dtype="bfloat16")
    assert_message(narrow, f"{unsupported} products or sums in bfloat16", "choose 'auto'")
    of_gru = draw("gru_after", shape=SHAPE)
    assert_message(lambda: gru(*of_gru, backend="cudnn"), f"{unsupported} the cell gru")
    projected = draw("lstm_projected", shape=SHAPE)
    assert_message(lambda: by_cudnn(*projected), f"{unsupported} a projection")
    for options in ({"cell": "rnn"}, {"projection_size": 2}, {"compute_dtype": "bfloat16"}):
        assert_message(lambda o=options: StackConfig(backend="cudnn", **o), unsupported)
    scope = jax.export.symbolic_shape("t")
    shapes = jax.ShapeDtypeStruct((*scope, B, D), jnp.float32)
    exported = jax.export.export(jax.jit(partial(by_cudnn, params, carry)))
    assert_message(lambda: exported(shapes), f"{unsupported} symbolic T or B")

    def squared(xs: Any) -> Any:
        return weighted(1, by_cudnn(params, carry, xs)) ** 2

    for over in ("reverse", "forward"):
        assert_message(partial(second_order, squared, xs, over), "cannot be differentiated")
    _, pull = jax.vjp(squared, xs)
    of_gradient = partial(jax.jvp, pull, (jnp.float32(1),), (jnp.float32(1),))
    assert_message(of_gradient, "cannot be differentiated")


def test_without_a_gpu_one_line_says_so() -> None:
    inputs = draw("lstm", shape=SHAPE)
    parts = ("needs an NVIDIA GPU", "JAX sees cpu alone", "choose 'auto'")
    assert_message(lambda: run(*inputs, backend="cudnn"), *parts)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("dtype", "is_allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_allowed_where_it_is_asked_for(dtype: Any, is_allowed: bool) -> None:
    """Forward and backward."""
    inputs = draw("lstm", shape=SHAPE)

    def loss(*inputs: Any) -> Any:
        return weighted(1, layer(*inputs, backend="cudnn", compute_dtype=dtype))

    found = {
        equation.primitive.name: equation.params["cudnn_allow_tf32"]
        for equation, _ in equations(jax.make_jaxpr(jax.grad(loss))(*inputs))
        if "cudnn_allow_tf32" in equation.params
    }
    assert found == {"rnn_fwd": is_allowed, "rnn_bwd": is_allowed}


@pytest.mark.usefixtures("traced")
def test_each_device_of_a_mesh_has_outputs_of_its_own() -> None:
    """Told to be everyone's, they would have their gradients summed over the devices."""
    params, _, xs = draw("lstm", shape=(T, 2, D, H))
    rows = PartitionSpec(None, "data")

    def varies(xs: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            final, ys = lstm(params, None, xs, backend="cudnn")
            for each in (*final, ys):
                assert jax.typeof(each).manual_axis_type.varying == {"data"}
            return weighted(1, ys)

        return jax.grad(loss, 1)(params, xs)

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    gradients = jax.eval_shape(jax.shard_map(varies, mesh=mesh, in_specs=rows, out_specs=rows), xs)
    assert gradients.shape == xs.shape


@slow
@pytest.mark.usefixtures("traced")
@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="nothing here knows cuDNN: pip install '.[cuda]'",
)
def test_lowered_for_a_gpu_it_is_two_calls() -> None:
    inputs = draw("lstm", shape=SHAPE)
    step = jax.jit(jax.grad(lambda inputs: weighted(1, layer(*inputs, backend="cudnn"))))
    text = step.trace(inputs).lower(lowering_platforms=("cuda",)).as_text()
    calls = [text.count(f"@{name}(") for name in ("cudnn_rnn_ffi", "cudnn_rnn_bwd_ffi")]
    assert calls == [1, 1]
    assert "while" not in text
