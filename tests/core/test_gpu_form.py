"""The recurrence in its form for GPUs, run on the CPU: the reference's values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_near,
    assert_same_bits,
    draw,
    each_form,
    flags,
    run_anew,
    second_order_of,
    slow,
    weighted,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.recurrence import layer

forms = each_form(("lstm", "gru_after", "rnn"), "lstm")
shapes = st.tuples(st.integers(1, 13), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@forms
@pytest.mark.usefixtures("as_on_a_gpu", "float64")
@settings(max_examples=4)
@given(
    shape=shapes,
    given=st.sets(st.sampled_from(["mask", "resets"])),
    reverse=st.booleans(),
    unroll=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_reference(
    form: str, shape: Any, given: set[str], reverse: bool, unroll: Any, seed: int
) -> None:
    inputs = draw(form, seed, jnp.float64, shape)
    options = {name: flag for name, flag in flags(seed, shape[:2]).items() if name in given}
    found = run_anew(inputs, **options, reverse=reverse, unroll=unroll)
    expected = run_anew(inputs, **options, reverse=reverse, backend="reference")
    assert_near(found, expected, 1e-10)


@slow
@pytest.mark.usefixtures("as_on_a_gpu", "float64")
def test_a_relu_and_a_scaled_state_are_the_references() -> None:
    for form, options in (("rnn", {"activation": "relu"}), ("lstm", {"state_scale": np.eye(3, 5)})):
        inputs = draw(form, 1, jnp.float64)
        found, expected = (
            run_anew(inputs, **flags(1), **options, backend=backend)  # type: ignore[arg-type]
            for backend in ("scan", "reference")
        )
        assert_near(found, expected, 1e-10)


@slow
@forms
@pytest.mark.usefixtures("as_on_a_gpu", "float64")
def test_its_second_order_is_the_references(form: str) -> None:
    shape = (5, 2, 3, 3)
    inputs, given = draw(form, 0, jnp.float64, shape), flags(1, shape[:2])
    found, expected = (
        second_order_of(inputs, **given, backend=backend) for backend in ("scan", "reference")
    )
    assert_near(found, expected, 1e-10)


@slow
@each_form(("lstm", "gru_after"))
@pytest.mark.usefixtures("as_on_a_gpu")
def test_in_bfloat16_it_is_the_reference_within_its_rounding(form: str) -> None:
    inputs, mask = draw(form, shape=(12, 4, 3, 8)), flags(3, (12, 4))["mask"]
    found = run_anew(inputs, mask=mask, compute_dtype="bfloat16")
    assert_near(found, run_anew(inputs, mask=mask, backend="reference"), 0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}


@each_form(("lstm", "gru_after"), "lstm")
def test_one_exported_program_has_both_forms(form: str) -> None:
    """Unrolled for a GPU; and on a CPU its values are those of a program for CPUs alone."""
    inputs = draw(form, shape=(20, 2, 3, 4))
    run = jax.jit(jax.grad(lambda inputs: weighted(1, layer(*inputs))))
    cpu, cuda, both = (
        jax.export.export(run, platforms=platforms)(inputs)
        for platforms in (("cpu",), ("cuda",), ("cpu", "cuda"))
    )
    counts = [each.mlir_module().count("dot_general") for each in (cpu, cuda, both)]
    assert sorted(set(counts)) == counts
    assert_same_bits(both.call(inputs), run(inputs))
