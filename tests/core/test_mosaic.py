"""The recurrence as one kernel for all time steps, interpreted on the CPU."""

import os
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    as_for_cuda,
    assert_near,
    assert_same_bits,
    draw,
    flags,
    run_anew,
    slow,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lstm_jax.recurrence import layer

FUSED_FORMS = ("lstm", "gru_after")
SIZES = {"cluster": [64, 128, 192, 256], "grid": [320, 384]}
"""Of the hidden state. A grid is interpreted with a barrier in place of its semaphores, and with
fewer than 32 blocks, as JAX runs no more computations on a CPU at once."""
interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="jax 0.10 cannot interpret the kernel"
)
fused_forms = pytest.mark.parametrize("form", FUSED_FORMS)
WITHIN = {"tf32": 2e-5, "bfloat16": 0.03}
"""Tolerance against the reference in float64; the interpreter computes TF32 in float32."""


def assert_the_references(inputs: Any, compute_dtype: Any, **options: Any) -> None:
    from jax.experimental.pallas import mosaic_gpu

    with mosaic_gpu.force_gpu_interpret_mode():
        found = run_anew(inputs, backend="mosaic", compute_dtype=compute_dtype, **options)
        found = jax.tree.map(np.asarray, found)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), inputs)
        expected = run_anew(wide, backend="reference", **options)
    assert_near(found, expected, WITHIN[compute_dtype])


@interpreted
@pytest.mark.usefixtures("as_on_a_gpu")
@fused_forms
def test_it_is_the_reference(form: str) -> None:
    inputs = draw(form, shape=(3, 2, 3, 64))
    assert_the_references(inputs, "tf32", **flags(0, (3, 2)))


@slow
@interpreted
@fused_forms
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_reference_at_any_size(form: str, sizes: str) -> None:
    """In a process with more threads than a cluster has blocks, each of which may block one."""
    environment = os.environ | {"NPROC": "128"}
    command = [sys.executable, "-W", "error", __file__, form, sizes]
    subprocess.run(command, check=True, env=environment)


@given(
    data=st.data(),
    times=st.integers(1, 4),
    batch=st.sampled_from([1, 63, 64, 65, 129]),
    given=st.sets(st.sampled_from(["mask", "resets"])),
    reverse=st.booleans(),
    compute_dtype=st.sampled_from(["tf32", "bfloat16"]),
    seed=st.integers(0, 1000),
)
def is_the_reference(
    form: str,
    sizes: list[int],
    data: st.DataObject,
    times: int,
    batch: int,
    given: set[str],
    reverse: bool,
    compute_dtype: str,
    seed: int,
) -> None:
    inputs = draw(form, seed, shape=(times, batch, 3, data.draw(st.sampled_from(sizes))))
    options = {name: flag for name, flag in flags(seed, (times, batch)).items() if name in given}
    assert_the_references(inputs, compute_dtype, **options, reverse=reverse)


@pytest.mark.parametrize(
    ("form", "rows", "hidden_size", "options", "why"),
    [
        ("lstm", 1, 96, {"compute_dtype": "bfloat16"}, "not 96"),
        ("lstm", 900, 320, {"compute_dtype": "bfloat16"}, "900 rows of 320 units"),
        ("lstm", 1, 64, {}, "bfloat16 or tf32"),
        ("lstm_projected", 1, 64, {"compute_dtype": "tf32"}, "no projection"),
        ("gru_before", 1, 64, {"compute_dtype": "tf32"}, "after the product"),
    ],
)
def test_what_it_cannot_run_is_a_scan_with_a_warning_of_one_line(
    form: str, rows: int, hidden_size: int, options: Any, why: str
) -> None:
    inputs = draw(form, shape=(2, rows, 3, hidden_size))
    if jax.__version_info__ < (0, 11):
        why = "needs jax 0.11"
    with pytest.warns(
        UserWarning, match=rf"^backend 'mosaic' .*{why}.*; the scan runs instead$"
    ) as caught:
        found = layer(*inputs, backend="mosaic", **options)
    assert_same_bits(found, layer(*inputs, backend="scan", **options))
    (it,) = caught
    line = warnings.formatwarning(str(it.message), it.category, it.filename, it.lineno)
    assert line.count("\n") == 1


@interpreted
def test_on_a_cpu_it_is_the_scan() -> None:
    inputs = draw("lstm", shape=(3, 2, 3, 64))
    found, expected = (
        run_anew(inputs, backend=backend, compute_dtype="tf32") for backend in ("mosaic", "scan")
    )
    assert_same_bits(found, expected)


if __name__ == "__main__":
    from lstm_jax.kernels import mosaic

    lax.platform_dependent = as_for_cuda
    mosaic.LARGEST_CLUSTER, form, sizes = 128, *sys.argv[1:]
    count = 16 if sizes == "cluster" else 6
    examples = settings(max_examples=count, deadline=None, derandomize=True, database=None)
    examples(is_the_reference)(form, SIZES[sizes])
