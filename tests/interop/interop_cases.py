"""Stacks, inputs and comparisons that the tests of weights and modules share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from core_cases import normals_like

from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModelConfig, LanguageModelParams, TiedOutputParams
from lstm_jax.recurrence import layer
from lstm_jax.stack import StackConfig, init_stack, run_stack

FORMS = ("rnn", "lstm", "gru_after", "gru_before")
RESET_AFTER = FORMS[:3]
Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]


def config_of(
    form: str,
    layers: int,
    bidirectional: bool,
    hidden: int,
    **options: Any,
) -> StackConfig:
    cell, _, reset = form.partition("_")
    options |= {"layers": layers, "bidirectional": bidirectional, "hidden_size": hidden}
    return StackConfig(cell=cell, gru_reset=reset or "after", **options)


def draw_layers(
    form: str,
    layers: int,
    bidirectional: bool,
    input_size: int,
    hidden: int,
    seed: int = 0,
    dtype: Any = np.float32,
    use_bias: bool = True,
) -> tuple[Any, ...]:
    """Normal weights; every bias is drawn, none is zero."""
    config = config_of(form, layers, bidirectional, hidden, use_bias=use_bias)
    shapes = jax.eval_shape(lambda: init_stack(jax.random.key(0), config, input_size, dtype))
    drawn: tuple[Any, ...] = jax.tree.map(lambda a: a / 2, normals_like(seed, shapes))
    return drawn


def draw_model(
    form: str, layers: int, bidirectional: bool, entry: str, tokens: int = 7, hidden: int = 4
) -> tuple[LanguageModelConfig, LanguageModelParams]:
    """A language model whose tokens enter "one-hot", by an "embedding", or by a "tied" one."""
    stack = config_of(form, layers, bidirectional, hidden)
    size = {"one-hot": None, "embedding": 2, "tied": stack.output_size}[entry]
    b = jnp.asarray(normal(1, tokens))
    output = OutputParams(jnp.asarray(normal(2, stack.output_size, tokens)), b)
    params = LanguageModelParams(
        None if size is None else jnp.asarray(normal(3, tokens, size)),
        draw_layers(form, layers, bidirectional, size or tokens, hidden),
        TiedOutputParams(b) if entry == "tied" else output,
    )
    return LanguageModelConfig(**vars(stack), embedding_size=size, tied=entry == "tied"), params


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@partial(jax.jit, static_argnums=0)
def outputs(config: StackConfig, layers: tuple[Any, ...], xs: Any) -> Any:
    """The stack's outputs of `[T, B, D]`; compiled, for a loop of dispatches takes longer."""
    return run_stack(config, layers, None, xs)[1]


@partial(jax.jit, static_argnums=0)
def with_gradients(
    config: StackConfig, inputs: Any, mask: Any, weights: Any, scale: Any = None
) -> Any:
    """The stack's results of layers, carry and xs, and gradients of their weighted sum.

    With a scale of the hidden state, those of its one layer.
    """

    def loss(inputs: Any) -> Any:
        if scale is None:
            results = run_stack(config, *inputs, mask=mask)
        else:
            (params,), (carry,), xs = inputs
            carry, ys = layer(params, carry, xs, mask=mask, state_scale=scale)
            results = ((carry,), ys)
        pairs = zip(*map(jax.tree.leaves, (weights, results)), strict=True)
        return sum(jnp.vdot(w, r) for w, r in pairs), results

    (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
    return results, gradients
