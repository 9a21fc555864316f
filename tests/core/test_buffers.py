"""What the compiled fast path does not do: copy the buffer that its loops write over."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from core_cases import DENSE_FORMS, cases, init, slow
from jax import Array, random

from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import layer

T, B, D, H = 20, 8, 5, 16
MASK = jnp.ones((T, B), bool)


@pytest.mark.parametrize("form", DENSE_FORMS)
@cases("compute_dtype", ["float32", "bfloat16"], "float32")
def test_no_loop_copies_the_buffer_it_writes_over(
    form: str, compute_dtype: ComputeDtype, **options: Any
) -> None:
    params = init(form, random.key(0), D, H)
    gates = params.w_x.shape[1]

    def loss(params: object, xs: Array) -> Array:
        carry, ys = layer(params, None, xs, mask=MASK, compute_dtype=compute_dtype, **options)
        return jnp.sum(ys**2) + jnp.sum(carry.h)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    program = gradient.lower(params, jnp.ones((T, B, D))).compile().as_text()
    assert f"f32[{T},{B},{gates}]" in program
    assert not re.search(rf"= f32\[{T},{B},{gates}\]\S* copy\(", program)


@slow
def test_no_loop_does_with_a_relu_or_a_scaled_state() -> None:
    check = partial(test_no_loop_copies_the_buffer_it_writes_over, compute_dtype="float32")
    check("rnn", activation="relu")
    for form in ("rnn", "lstm", "gru_after", "gru_before"):
        check(form, state_scale=jnp.ones((B, H)))
