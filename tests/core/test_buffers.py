"""What the compiled fast path does not do.

It does not copy the buffer that its loops write over, nor write it where nothing is differentiated.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def test_nothing_is_written_for_a_backward_pass_that_does_not_come() -> None:
    params, xs = init("lstm", random.key(0), D, H), random.normal(random.key(1), (T, B, D))

    def run(params: object, xs: Array) -> Array:
        return layer(params, None, xs, mask=MASK)[1]

    alone = jax.jit(run)
    program = alone.lower(params, xs).compile().as_text()
    written = rf"= f32\[{T},{B},{params.w_x.shape[1]}\]\S* dynamic-update-slice\("
    assert not re.search(written, program)
    # With it the same loop writes it, and computes the same.
    differentiated = jax.jit(partial(jax.vjp, run)).lower(params, xs).compile()
    assert re.search(written, differentiated.as_text())
    np.testing.assert_array_equal(alone(params, xs), differentiated(params, xs)[0])


@slow
def test_no_loop_does_with_a_relu_or_a_scaled_state() -> None:
    check = partial(test_no_loop_copies_the_buffer_it_writes_over, compute_dtype="float32")
    check("rnn", activation="relu")
    for form in ("rnn", "lstm", "gru_after", "gru_before"):
        check(form, state_scale=jnp.ones((B, H)))
