"""Precision policy: the dtypes and hardware precision of every matrix product."""

from functools import partial
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

ComputeDtype = Literal["float32", "tf32", "bfloat16"]

Tree = TypeVar("Tree")


class Products(NamedTuple):
    """How the matrix products of a computation are formed.

    Attributes:
        operand: dtype to which both operands are cast.
        accumulate: dtype of sums, results, carries, softmax and loss.
        precision: how far the hardware may round float32 operands.

    Examples:
        >>> policy = lstm_jax.precision.products("bfloat16", jnp.float32)
        >>> policy.dot(jnp.ones((2, 3)), jnp.ones((3, 4))).dtype
        dtype('float32')
    """

    operand: jnp.dtype
    accumulate: jnp.dtype
    precision: lax.Precision

    def cast(self, array: Array) -> Array:
        """Cast an operand; cast weights once, outside of loops."""
        return array.astype(self.operand)

    def transposed(self, w_DG: Array) -> Array:
        """`w.T` as the operand of a product inside a loop.

        In float32 it is copied once: otherwise XLA on CPU transposes at each product (a third of
        the time of 32 x 1,024 by 1,024 x 256). In bfloat16 XLA is fastest without the copy.
        """
        w_GD = self.cast(w_DG).T
        return w_GD if self.operand == jnp.bfloat16 else lax.optimization_barrier(w_GD)

    def einsum(self, spec: str, left: Array, right: Array) -> Array:
        """`einsum(spec, left, right)` under this policy; differentiable in every mode."""
        return jnp.einsum(
            spec,
            self.cast(left),
            self.cast(right),
            precision=self.precision,
            preferred_element_type=self.accumulate,
        )

    def dot(self, left: Array, right: Array) -> Array:
        """`left [..., K] @ right [K, N]`."""
        return self.einsum("...k,kn->...n", left, right)

    def weight_gradient(self, xs: Array, dout: Array) -> Array:
        """Gradient of w in `xs [..., D] @ w [D, G]`: `[D, G]`, summed over all leading axes.

        Chosen for XLA on CPU: the longer side comes last (2.5 times as fast for 512 x 83). bfloat16
        operands are row-major, behind a row of zeros that keeps XLA from folding the transposition
        into the product, since it multiplies a transposed left operand in float32 (twice the time).
        Time and batch stay two axes: merged into one, which no mesh can split by batch, all rows
        would be gathered on each device.
        """
        if xs.shape[-1] > dout.shape[-1]:
            return self.weight_gradient(dout, xs).T
        k = "abcefhijklmn"[: xs.ndim - 1]
        xs, dout = self.cast(xs), self.cast(dout)

        def transposed(xs: Array, dout: Array) -> Array:
            return self.einsum(f"{k}d,{k}g->dg", xs, dout)

        def row_major(xs: Array, dout: Array) -> Array:
            first = jnp.moveaxis(xs, -1, 0)
            padded = jnp.pad(first, ((0, 1), *[(0, 0)] * len(k)))
            return self.einsum(f"d{k},{k}g->dg", padded, dout)[:-1]

        if self.operand != jnp.bfloat16:
            return transposed(xs, dout)
        return lax.platform_dependent(xs, dout, cpu=row_major, default=transposed)


def products(compute_dtype: ComputeDtype | None, param_dtype: DTypeLike) -> Products:
    """Choose operand dtype, accumulator dtype and hardware precision together.

    float32 products default to TF32 on GPU and to bfloat16 on TPU; here `"float32"` means full
    float32, and the shorter formats must be requested. Sums are in at least float32, and in float64
    for float64 parameters.

    Args:
        compute_dtype: `"float32"` or None (full precision in the parameters' own dtype, also
            float64), `"tf32"` (float32 operands; TensorFloat-32 on GPUs that have it, three
            bfloat16 passes on TPU, full float32 on CPU), or `"bfloat16"` (operands rounded to
            bfloat16, sums in float32).
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: `compute_dtype` is none of these.

    Examples:
        >>> policy = lstm_jax.precision.products("bfloat16", jnp.float32)
        >>> policy.operand, policy.accumulate
        (dtype(bfloat16), dtype('float32'))
    """
    accumulate = jnp.promote_types(param_dtype, jnp.float32)
    match compute_dtype:
        case None | "float32":
            return Products(accumulate, accumulate, lax.Precision.HIGHEST)
        case "tf32":
            return Products(accumulate, accumulate, lax.Precision.HIGH)
        case "bfloat16":
            return Products(jnp.dtype(jnp.bfloat16), accumulate, lax.Precision.DEFAULT)
    raise ValueError(
        f"compute_dtype is {compute_dtype!r}; give one of the texts "
        f"{', '.join(map(repr, get_args(ComputeDtype)))}"
    )


def draw_dtype(dtype: DTypeLike) -> DTypeLike:
    """Dtype in which parameters are drawn before the cast to `dtype`: float32 or wider.

    Raises ValueError if `dtype` is not floating-point.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}; give a floating-point one")
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def cast_tree(tree: Tree, dtype: DTypeLike) -> Tree:
    """Cast every array of the tree."""
    return jax.tree.map(lambda array: array.astype(dtype), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def time_product(policy: Products, xs_TBD: Array, w_DG: Array) -> Array:
    """`xs @ w` over all time steps, or of one, in the accumulator's dtype; reverse mode only.

    JAX's own transpose of a bfloat16 product would round the weight gradient to bfloat16 and mix
    operand dtypes. Here both gradients take bfloat16 operands and float32 sums, and the weight
    gradient is one product that contracts time and batch together.
    """
    return _time_product_forward(policy, xs_TBD, w_DG)[0]


def _time_product_forward(
    policy: Products, xs_TBD: Array, w_DG: Array
) -> tuple[Array, tuple[Array, Array]]:
    return policy.dot(xs_TBD, w_DG), (xs_TBD, w_DG)


def _time_product_backward(
    policy: Products, saved: tuple[Array, Array], dout_TBG: Array
) -> tuple[Array, Array]:
    xs_TBD, w_DG = saved
    dout_TBG = policy.cast(dout_TBG)
    dxs_TBD = policy.einsum("...g,dg->...d", dout_TBG, w_DG)
    dw_DG = policy.weight_gradient(xs_TBD, dout_TBG)
    return dxs_TBD.astype(xs_TBD.dtype), dw_DG.astype(w_DG.dtype)


time_product.defvjp(_time_product_forward, _time_product_backward)
