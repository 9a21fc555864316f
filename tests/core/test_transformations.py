"""JAX's transformations of a layer: vmap, checkpoint, higher orders, forward mode, devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    FORMS,
    UNITWISE_FORMS,
    assert_near,
    assert_same_bits,
    draw_carry,
    init,
    normals_like,
    on,
    run_with_gradients,
    weighted,
)
from jax import random
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lstm_jax.recurrence import layer

T, B, D, H = 4, 2, 3, 3

slow = pytest.mark.slow
forms = pytest.mark.parametrize(
    "form", ["lstm", *(pytest.param(form, marks=slow) for form in FORMS if form != "lstm")]
)


def draw(form: str, seed: int = 0, dtype: Any = jnp.float64, batch: int = B) -> Any:
    keys = random.split(random.key(seed), 3)
    params = init(form, keys[0], D, H, dtype)
    xs = random.normal(keys[2], (T, batch, D), dtype)
    return params, draw_carry(keys[1], params, batch), xs


def mask_and_resets(batch: int = B) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shape = (T, batch)
    return {
        "mask": jnp.asarray(rng.random(shape) < 0.8),
        "resets": jnp.asarray(rng.random(shape) < 0.2),
    }


def loss(inputs: Any, **options: Any) -> Any:
    return weighted(1, layer(*inputs, **on(inputs[0], options)))


@forms
def test_vmap_over_parameters_is_a_loop_over_the_ensemble(float64: None, form: str) -> None:
    members = [draw(form, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *[params for params, _, _ in members])
    _, carry, xs = members[0]
    gradient = jax.value_and_grad(lambda params: loss((params, carry, xs), **mask_and_resets()))
    found = jax.jit(jax.vmap(gradient))(stacked)
    loop = [jax.jit(gradient)(params) for params, _, _ in members]
    assert_near(found, jax.tree.map(lambda *a: jnp.stack(a), *loop), 1e-12)


def test_vmap_over_inputs_is_a_loop_over_them(float64: None) -> None:
    params, carry, _ = draw("lstm")
    many_xs = random.normal(random.key(5), (3, T, B, D), jnp.float64)
    many_masks = random.bernoulli(random.key(6), 0.7, (3, T, B))

    def gradient(xs: Any, mask: Any) -> Any:
        return jax.value_and_grad(loss)((params, carry, xs), mask=mask)

    found = jax.jit(jax.vmap(gradient))(many_xs, many_masks)
    one = jax.jit(gradient)
    loop = [one(xs, mask) for xs, mask in zip(many_xs, many_masks, strict=True)]
    assert_near(found, jax.tree.map(lambda *a: jnp.stack(a), *loop), 1e-12)


@forms
def test_checkpoint_changes_no_gradient(float64: None, form: str) -> None:
    inputs = draw(form)

    def squared(run: Any, inputs: Any) -> Any:
        return jnp.tanh(run(inputs, **mask_and_resets())) ** 2

    found = jax.jit(jax.grad(partial(squared, jax.checkpoint(loss))))(inputs)
    assert_near(found, jax.jit(jax.grad(partial(squared, loss)))(inputs), 1e-12)


def second_order(inputs: Any, directions: Any, backend: str, over: str) -> Any:
    """The Hessian times a direction: reverse, or forward, over reverse."""
    options = {**mask_and_resets(), "backend": backend}
    gradient = jax.grad(lambda inputs: loss(inputs, **options) ** 2)
    if over == "forward":
        return jax.jvp(gradient, (inputs,), (directions,))[1]

    def along(inputs: Any) -> Any:
        pairs = zip(*map(jax.tree.leaves, (gradient(inputs), directions)), strict=True)
        return sum(jnp.vdot(g, d) for g, d in pairs)

    return jax.grad(along)(inputs)


@forms
def test_second_order_is_the_references(float64: None, form: str) -> None:
    inputs = draw(form)
    directions = normals_like(random.key(7), inputs)
    product = jax.jit(second_order, static_argnums=(2, 3))
    expected = product(inputs, directions, "reference", "forward")
    for over in ("reverse", "forward"):
        assert_near(product(inputs, directions, "fast", over), expected, 1e-10)


@forms
def test_references_gradients_are_finite_differences(float64: None, form: str) -> None:
    """In forward and reverse mode; the fast path's are the reference's."""
    loss_of = jax.jit(partial(loss, **mask_and_resets(), backend="reference"))
    check_grads(loss_of, (draw(form),), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


def test_reference_has_jacfwd_and_hessian(float64: None) -> None:
    params, carry, xs = draw("gru_after")

    def of_bias(b: Any, backend: str = "reference") -> Any:
        return loss((params._replace(b=b), carry, xs), backend=backend)

    forward = jax.jit(jax.jacfwd(of_bias))(params.b)
    gradient = jax.jit(jax.grad(partial(of_bias, backend="scan")))
    assert_near(forward, gradient(params.b), 1e-10)
    step = 1e-5
    moves = step * jnp.eye(3 * H)
    ahead, behind = (jax.jit(jax.vmap(gradient))(params.b + sign * moves) for sign in (1, -1))
    differences = (ahead - behind) / (2 * step)
    assert_near(jax.jit(jax.hessian(of_bias))(params.b), differences, 1e-8)


@forms
def test_fast_path_refuses_forward_mode(form: str) -> None:
    inputs = draw(form, dtype=jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(loss, backend="scan"), (inputs,), (inputs,))


@forms
def test_jit_is_op_by_op(form: str) -> None:
    inputs = draw(form, dtype=jnp.float32)
    assert_near(jax.jit(layer)(*inputs), layer(*inputs), 1e-6)


def test_donated_buffers_are_used_again() -> None:
    params, carry, xs = draw("lstm", dtype=jnp.float32)
    expected = jax.jit(layer)(params, carry, xs)
    given = jax.tree.map(jnp.copy, carry)
    found = jax.jit(layer, donate_argnums=1)(params, given, xs)
    assert_same_bits(found, expected)
    assert all(state.is_deleted() for state in given)
    zero = jax.jit(layer, donate_argnums=1)(params, found[0], xs)[0]
    assert_same_bits(zero, jax.jit(layer)(params, expected[0], xs)[0])


# Two devices -------------------------------------------------------------------------------------

BATCH = 4


def mesh() -> Any:
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize(
    ("form", "carried"),
    [("lstm", True), ("lstm", False), ("gru_before", True)]
    + [pytest.param(form, True, marks=slow) for form in ("rnn", "gru_after", *UNITWISE_FORMS)],
)
def test_shard_map_over_two_devices_is_one(float64: None, form: str, carried: bool) -> None:
    """The batch over the devices, parameters on each: their gradients arrive summed."""
    params, carry, xs = draw(form, batch=BATCH)
    carry = carry if carried else None
    flags = mask_and_resets(BATCH)
    weights = random.normal(random.key(2), (T, BATCH, H), jnp.float64)

    def gradients(params: Any, carry: Any, xs: Any, flags: Any, weights: Any) -> Any:
        def local(params: Any, carry: Any, xs: Any) -> Any:
            final, ys = layer(params, carry, xs, **on(params, flags))
            return jnp.vdot(weights, ys) + jnp.vdot(weights[0], final.h), (final, ys)

        (_, results), (dparams, dxs) = jax.value_and_grad(local, (0, 2), has_aux=True)(
            params, carry, xs
        )
        return results, dparams, dxs

    time_batch, batch, whole = PartitionSpec(None, "data"), PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        gradients,
        mesh=mesh(),
        in_specs=(whole, batch, time_batch, time_batch, time_batch),
        out_specs=((batch, time_batch), whole, time_batch),
        check_vma=True,
    )
    inputs = (params, carry, xs, flags, weights)
    assert_near(jax.jit(sharded)(*inputs), jax.jit(gradients)(*inputs), 1e-12)


@pytest.mark.parametrize(
    "form", ["lstm", "gru_before", *(pytest.param(form, marks=slow) for form in UNITWISE_FORMS)]
)
def test_jit_over_two_devices_is_one(form: str) -> None:
    params, carry, xs = draw(form, dtype=jnp.float32, batch=BATCH)
    flags = mask_and_resets(BATCH)
    expected = run_with_gradients(params, carry, xs, **flags)

    def put(tree: Any, *axes: str | None) -> Any:
        return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec(*axes)))

    found = run_with_gradients(
        put(params), put(carry, "data"), put(xs, None, "data"), **put(flags, None, "data")
    )
    (final, ys), (dparams, _, _) = found
    assert ys.sharding.is_equivalent_to(put(ys, None, "data").sharding, 3)
    assert final.h.sharding.is_equivalent_to(put(final.h, "data").sharding, 2)
    assert all(array.sharding.is_fully_replicated for array in jax.tree.leaves(dparams))
    # The devices' halves of a weight gradient are summed in another order.
    assert_near(found, expected, 1e-6)
