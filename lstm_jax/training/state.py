"""The training state, and the jitted function that takes it one step further.

Shapes: T steps of truncated backpropagation, B batch, N rows of the corpus.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax, random

from lstm_jax.losses import TokenSums
from lstm_jax.models import LanguageModel, LanguageModelParams


@struct.dataclass
class TrainState:
    """All that a run carries from step to step, and all that a checkpoint holds.

    Attributes:
        step: int32, steps taken.
        params: the model's parameters.
        opt_state: the optimizer's.
        carry: the recurrent state that goes from batch to batch.
        key: typed PRNG key of the run; each step folds its number in.
        batch: int32, the next batch's place in its epoch.
        skipped: int32, steps whose loss or gradient was not finite, so that nothing was learnt.
    """

    step: Array
    params: LanguageModelParams
    opt_state: Any
    carry: Any
    key: Array
    batch: Array
    skipped: Array


class StepMetrics(NamedTuple):
    """What a step reports: mean loss in nats a token, and gradient norm before clipping."""

    loss: Array
    grad_norm: Array


class Program(NamedTuple):
    """What a training step is compiled for.

    Attributes:
        model: the language model.
        optimizer: gradients -> updates.
        sequence_length: T.
        batches: batches of one epoch.
    """

    model: LanguageModel
    optimizer: optax.GradientTransformation
    sequence_length: int
    batches: int


@partial(jax.jit, static_argnums=(0, 2))
def init_state(program: Program, seed: Array, batch_size: int) -> TrainState:
    """The state before the first step."""
    key_params, key = random.split(random.key(seed))
    params = program.model.init(key_params)
    zero = partial(jnp.zeros, (), jnp.int32)
    return TrainState(
        step=zero(),
        params=params,
        opt_state=program.optimizer.init(params),
        carry=program.model.zero_carry(params, batch_size),
        key=key,
        batch=zero(),
        skipped=zero(),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    program: Program, state: TrainState, rows: Array, first_row: Array
) -> tuple[TrainState, StepMetrics]:
    """Takes one training step: forward, backward, clipping, Adam.

    Args:
        program: static.
        state: donated.
        rows: int32 `[N, B]`, lanes of the corpus, time first: all of them, or a stretch that
            holds the rows of this step's batch.
        first_row: which row of the corpus `rows` begins with.

    Returns:
        The state, and the step's metrics.
    """
    start = state.batch * program.sequence_length - first_row
    tokens_TB = lax.dynamic_slice_in_dim(rows, start, program.sequence_length + 1)
    key = random.fold_in(state.key, state.step)
    starts = state.batch == 0
    before = jax.tree.map(lambda c: jnp.where(starts, jnp.zeros_like(c), c), state.carry)

    def mean_loss(params: LanguageModelParams) -> tuple[Array, Any]:
        sums, carry = program.model.token_sums(
            params, before, tokens_TB[:-1], tokens_TB[1:], dropout_key=key
        )
        return sums.loss / sums.weight, carry

    (loss, carry), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    grad_norm = optax.tree.norm(gradients)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=if_finite(params, state.params),
        opt_state=if_finite(opt_state, state.opt_state),
        carry=if_finite(carry, before),
        batch=(state.batch + 1) % program.batches,
        skipped=state.skipped + ~finite,
    )
    return state, StepMetrics(loss.astype(jnp.float32), grad_norm.astype(jnp.float32))


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(
    model: LanguageModel,
    sequence_length: int,
    params: LanguageModelParams,
    inputs: Array,
    targets: Array,
    mask: Array,
) -> TokenSums:
    """Sums over a held-out text laid out in padded lanes `[S T, B]`, from a zero carry."""

    def chunk(
        carry: tuple[Any, TokenSums], batch: tuple[Array, Array, Array]
    ) -> tuple[tuple[Any, TokenSums], None]:
        carry, sums = carry
        tokens, targets, mask = batch
        found, carry = model.token_sums(params, carry, tokens, targets, mask=mask)
        return (carry, jax.tree.map(jnp.add, sums, found)), None

    zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
    start = (model.zero_carry(params, inputs.shape[1]), TokenSums(zero, zero, zero))
    chunks = jax.tree.map(
        lambda a: a.reshape(-1, sequence_length, *a.shape[1:]), (inputs, targets, mask)
    )
    (_, sums), _ = lax.scan(chunk, start, chunks)
    return sums
