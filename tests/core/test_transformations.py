"""JAX's transformations of a layer: vmap, higher orders, forward mode, devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from core_cases import (
    FORMS,
    assert_near,
    draw,
    each_form,
    each_kind,
    flags,
    on,
    run_with_gradients,
    second_order_of,
    weighted,
)
from jax import random
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from lstm_jax.recurrence import layer

T, B, D, H = SHAPE = (4, 2, 3, 3)
BATCH = 4  # of two devices
FLAGS = flags(1, (T, B))
kinds = each_kind("lstm")
draw_small = partial(draw, shape=SHAPE)


def loss(inputs: Any, **options: Any) -> Any:
    return weighted(1, layer(*inputs, **on(inputs[0], options)))


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)


@kinds
def test_vmap_over_parameters_is_a_loop_over_the_ensemble(float64: None, form: str) -> None:
    members = [draw_small(form, seed, jnp.float64)[0] for seed in range(3)]
    _, *inputs = draw_small(form, 0, jnp.float64)
    gradient = jax.value_and_grad(lambda params: loss((params, *inputs), **FLAGS))
    found = jax.jit(jax.vmap(gradient))(stacked(members))
    assert_near(found, stacked([jax.jit(gradient)(params) for params in members]), 1e-12)


def test_vmap_over_inputs_is_a_loop_over_them(float64: None) -> None:
    params, carry, _ = draw_small("lstm", 0, jnp.float64)
    many_xs = random.normal(random.key(5), (3, T, B, D), jnp.float64)
    many_masks = random.bernoulli(random.key(6), 0.7, (3, T, B))

    def gradient(xs: Any, mask: Any) -> Any:
        return jax.value_and_grad(loss)((params, carry, xs), mask=mask)

    found, one = jax.jit(jax.vmap(gradient))(many_xs, many_masks), jax.jit(gradient)
    assert_near(found, stacked([*map(one, many_xs, many_masks)]), 1e-12)


@each_form(FORMS, "lstm", beyond=["minlstm", "diag-gru"])
def test_second_order_is_the_references(float64: None, form: str) -> None:
    inputs = draw_small(form, 0, jnp.float64)
    expected = second_order_of(inputs, "forward", **FLAGS, backend="reference")
    for over in ("reverse", "forward"):
        assert_near(second_order_of(inputs, over, **FLAGS), expected, 1e-10)


@kinds
def test_references_gradients_are_finite_differences(float64: None, form: str) -> None:
    """In forward and reverse mode; the fast path's are the reference's."""
    loss_of = jax.jit(partial(loss, **FLAGS, backend="reference"))
    inputs = draw_small(form, 0, jnp.float64)
    check_grads(loss_of, (inputs,), order=1, modes=["fwd", "rev"], atol=1e-6, rtol=1e-6)


@kinds
def test_fast_path_refuses_forward_mode(form: str) -> None:
    inputs = draw_small(form)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(loss, backend="scan"), (inputs,), (inputs,))


# Two devices -------------------------------------------------------------------------------------


def two_devices() -> Any:
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


TIMES, ROWS, WHOLE = PartitionSpec(None, "data"), PartitionSpec("data"), PartitionSpec()


@pytest.mark.parametrize("carried", [True, False])
@each_kind("lstm", "gru_before", "mingru")
def test_shard_map_over_two_devices_is_one(float64: None, form: str, carried: bool) -> None:
    """The batch over the devices, parameters on each: their gradients arrive summed.

    Also without a carry, a mask and resets, which then vary over no device.
    """
    params, carry, xs = draw_small(form, 0, jnp.float64, shape=(T, BATCH, D, H))
    carry = carry if carried else None
    weights = random.normal(random.key(2), (T, BATCH, H), jnp.float64)

    def gradients(params: Any, carry: Any, xs: Any, flags: Any, weights: Any) -> Any:
        def local(params: Any, carry: Any, xs: Any) -> Any:
            final, ys = layer(params, carry, xs, **on(params, flags))
            return jnp.vdot(weights, ys) + jnp.vdot(weights[0], final.h), (final, ys)

        (_, results), (dparams, dxs) = jax.value_and_grad(local, (0, 2), has_aux=True)(
            params, carry, xs
        )
        return results, dparams, dxs

    sharded = jax.shard_map(
        gradients,
        mesh=two_devices(),
        in_specs=(WHOLE, ROWS, TIMES, TIMES, TIMES),
        out_specs=((ROWS, TIMES), WHOLE, TIMES),
        check_vma=True,
    )
    inputs = (params, carry, xs, flags(1, (T, BATCH)) if carried else {}, weights)
    assert_near(jax.jit(sharded)(*inputs), jax.jit(gradients)(*inputs), 1e-12)


@each_kind("lstm", "mingru")
def test_shard_map_over_parameters_is_each_alone(form: str) -> None:
    """The two devices' layers on the same inputs."""
    params, _, xs = draw_small(form, shape=(T, BATCH, D, H))
    params = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    def outputs(params: Any, xs: Any) -> Any:
        return layer(jax.tree.map(lambda a: a[0], params), None, xs)[1][None]

    specs = {"in_specs": (ROWS, WHOLE), "out_specs": ROWS}
    found = jax.jit(jax.shard_map(outputs, mesh=two_devices(), **specs))(params, xs)
    first, second = (outputs(each, xs) for each in (params, jax.tree.map(jnp.flipud, params)))
    assert_near(found, jnp.concatenate([first, second]), 1e-6)


@each_kind("lstm", "gru_before")
def test_jit_over_two_devices_is_one(form: str) -> None:
    params, carry, xs = draw_small(form, shape=(T, BATCH, D, H))
    given = flags(1, (T, BATCH))
    expected = run_with_gradients(params, carry, xs, **given)

    def put(tree: Any, spec: PartitionSpec) -> Any:
        return jax.device_put(tree, NamedSharding(two_devices(), spec))

    found = run_with_gradients(
        put(params, WHOLE), put(carry, ROWS), put(xs, TIMES), **put(given, TIMES)
    )
    (final, ys), (dparams, _, _) = found
    assert ys.sharding.is_equivalent_to(put(ys, TIMES).sharding, 3)
    assert final.h.sharding.is_equivalent_to(put(final.h, ROWS).sharding, 2)
    assert all(array.sharding.is_fully_replicated for array in jax.tree.leaves(dparams))
    # The devices' halves of a weight gradient are summed in another order.
    assert_near(found, expected, 1e-6)
