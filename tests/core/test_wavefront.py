"""Two layers in one loop, the upper one delayed: the values of one after the other."""

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from core_cases import (
    B,
    D,
    H,
    assert_message,
    assert_near,
    flags,
    normals_like,
    slow,
    with_gradients,
)
from jax import random

from lstm_jax.stack import StackConfig, init_stack, run_stack, stack_zero_carry


def drawn(config: StackConfig, times: int, dtype: Any = jnp.float32) -> Any:
    """Parameters, a carry and inputs."""
    layers = init_stack(random.key(0), config, D, dtype)
    return layers, *normals_like(1, (stack_zero_carry(layers, B), jnp.zeros((times, B, D), dtype)))


def compiled(config: StackConfig, inputs: Any, tokens: Any = None, **marks: Any) -> Any:
    """The stack with its gradients, of tokens or else of the inputs."""

    def of(inputs: Any) -> Any:
        layers, carry, xs = inputs
        key = random.key(3) if config.dropout else None
        xs = xs if tokens is None else tokens
        return run_stack(config, layers, carry, xs, dropout_key=key, **marks)

    return jax.jit(partial(with_gradients, of)).lower(inputs).compile()


@slow
@pytest.mark.parametrize(
    ("times", "delay", "given", "options"),
    [
        (2, 1, (), {"cell": "rnn"}),
        (12, 4, ("mask", "resets"), {"dropout": 0.5}),
        (13, 5, ("tokens",), {"dropout": 0.5, "dropout_place": "outputs", "remat": 4}),
        (
            11, 3, ("mask",),
            {"cell": "gru", "layers": 3, "dropout": 0.3, "dropout_place": "inputs", "remat": 5},
        ),
        (7, 2, ("resets",), {"cell": "gru", "gru_reset": "before", "unroll": 2}),
        (
            9, 2, ("mask", "resets", "tokens"),
            {"projection_size": 2, "dropout": 0.5, "dropout_place": "inputs", "layers": 4},
        ),
    ],
)  # fmt: skip
def test_it_is_one_layer_after_the_other(
    float64: None, times: int, delay: int, given: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Values and gradients, whether K divides T or not, and with the same dropout."""
    in_turn = StackConfig(**{"layers": 2, "hidden_size": H} | options)
    inputs = drawn(in_turn, times, jnp.float64)
    marks = flags(2, (times, B)) | {"tokens": jnp.argmax(inputs[2], -1)}
    marks = {name: each for name, each in marks.items() if name in given}
    found, expected = (
        compiled(dataclasses.replace(in_turn, wavefront=wavefront), inputs, **marks)(inputs)
        for wavefront in (delay, None)
    )
    assert_near(found, expected, 1e-10)


def test_its_loops_take_k_steps_more_than_one_layers() -> None:
    """Forward and backward: the lower alone, both in chunks, the upper alone; 24 + 4 of 48."""
    in_turn = StackConfig(cell="rnn", layers=2, hidden_size=H)
    inputs = drawn(in_turn, 24)
    ahead = dataclasses.replace(in_turn, wavefront=4)
    trips = []
    for config in (in_turn, ahead):
        loops = re.findall(r'op_name="[^"]*jvp\(.*"n":"(\d+)"', compiled(config, inputs).as_text())
        trips.append(sorted(map(int, loops)))
    assert trips == [[24] * 4, [4] * 6 + [5] * 2]


def test_a_delay_as_long_as_the_sequence_is_the_same_program() -> None:
    in_turn = StackConfig(layers=2, hidden_size=H)
    programs = {
        jax.jit(partial(run_stack, config)).lower(*drawn(config, 6)).as_text()
        for config in (in_turn, dataclasses.replace(in_turn, wavefront=6))
    }
    assert len(programs) == 1


def test_layers_of_unlike_sizes_are_refused() -> None:
    config = StackConfig(layers=2, hidden_size=H, wavefront=2)
    layers, _, xs = drawn(config, 6)
    wider = init_stack(random.key(0), StackConfig(hidden_size=H + 1), H)
    refused = partial(run_stack, config, (layers[0], *wider), None, xs)
    assert_message(refused, "wavefront runs two layers side by side", "use layers of one size")
    of_other_inputs = init_stack(random.key(0), StackConfig(hidden_size=H), H + 2)
    refused = partial(run_stack, config, (layers[0], *of_other_inputs), None, xs)
    assert_message(refused, "the upper layer's input", f"w_x has {H + 2} rows")
