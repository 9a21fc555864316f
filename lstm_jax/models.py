"""Language models on top of the stack: a config, and pure functions of the parameters.

Shapes: T time, B batch, E embedding size, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.nn import initializers
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lstm_jax.cells import look_up, outnumber
from lstm_jax.checks import check_targets, require_key
from lstm_jax.dropout import dropout_mask, fold
from lstm_jax.initialisation import init_affine, init_embedding
from lstm_jax.kernels.chunks import is_shorter, scan_rematerialised
from lstm_jax.losses import OutputParams, TokenScores, TokenSums, fused_cross_entropy, look_up_split
from lstm_jax.precision import Products, cast_tree, draw_dtype, products, time_product
from lstm_jax.settings import Changeable, Positive, Share, Size
from lstm_jax.sharding import vary_as
from lstm_jax.stack import (
    StackConfig,
    each_direction,
    init_stack,
    run_stack,
    stack_zero_carry,
    step_stack,
)

_Dropout = tuple[Array | None, Array | None]
"""The dropout key, and the index of the chunk of time steps, if there are several."""


class SequenceOptions(TypedDict, total=False):
    """Keyword arguments of a language model besides tokens; see `LanguageModel.hidden`."""

    mask: Array | None
    resets: Array | None
    dropout_key: Array | None


class TiedOutputParams(NamedTuple):
    """Bias of an output layer whose weights are the transposed embedding: `b [V]`."""

    b: Array


class LanguageModelParams(NamedTuple):
    """Parameters of a language model.

    Attributes:
        embedding: `[V, E]`, or None for one-hot inputs.
        layers: parameters of the stack.
        output: the output layer, or its bias if tied.

    Examples:
        >>> config = lstm_jax.LanguageModelConfig(hidden_size=4, embedding_size=3)
        >>> params = lstm_jax.LanguageModel(config, vocabulary_size=5).init(jax.random.key(0))
        >>> params.embedding.shape, params.output.w.shape
        ((5, 3), (4, 5))
    """

    embedding: Array | None
    layers: tuple[Any, ...]
    output: OutputParams | TiedOutputParams


@dataclass(frozen=True)
class LanguageModelConfig(StackConfig):
    """Settings of a language model: a stack between token ids and logits.

    Attributes:
        embedding_size: E, the size of a token's vector; None feeds tokens one-hot.
        embedding_stddev: draw the embedding from a normal distribution with this standard
            deviation; None draws it as `initialisation` says.
        output_stddev: draw the output weights from a normal distribution with this standard
            deviation, with zero biases; None draws them as `initialisation` says.
        output_truncated: truncate that distribution at two standard deviations.
        output_dropout: additional dropout rate on the output layer's inputs.
        output_dropout_per: draw it anew at each "time", or once per "sequence" (Gal and
            Ghahramani, arXiv:1512.05287), like `dropout_place` "inputs".
        word_dropout: share of the vocabulary whose vectors are zero throughout a sequence in
            training (ibid.).
        tied: use the transposed embedding as the output layer's weights (Press and Wolf, 2017).

    Examples:
        >>> config = lstm_jax.LanguageModelConfig(cell="gru", layers=2, hidden_size=4, tied=True,
        ...     embedding_size=4)
        >>> config.output_size
        4
    """

    embedding_size: Size | None = None
    embedding_stddev: Positive | None = None
    output_stddev: Positive | None = None
    output_truncated: bool = True
    output_dropout: Changeable[Share] = 0.0
    output_dropout_per: Changeable[Literal["time", "sequence"]] = "time"
    word_dropout: Changeable[Share] = 0.0
    tied: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.word_dropout and self.embedding_size is None:
            raise ValueError(
                f"word_dropout is {self.word_dropout}, but without an embedding that is what "
                "dropout with dropout_place 'inputs' does; set that, or embedding_size"
            )
        if self.tied and self.embedding_size != self.output_size:
            raise ValueError(
                f"embedding_size is {self.embedding_size}; a tied output layer needs it to be "
                f"{self.output_size}, the size of what the last layer puts out"
            )
        if self.tied and self.output_stddev is not None:
            raise ValueError(
                "a tied output layer has no weights of its own; set embedding_stddev instead of "
                "output_stddev"
            )


def with_frequencies(params: LanguageModelParams, counts: Array) -> LanguageModelParams:
    """Set the output biases to the log frequencies of the targets.

        b_v = log((counts_v + 1) / sum_u (counts_u + 1))

    Adam moves a bias by at most the learning rate per step, so starting from zero it takes
    thousands of steps just to learn the token frequencies of a large vocabulary.
    """
    dtype = params.output.b.dtype
    smoothed = jnp.asarray(counts, draw_dtype(dtype)) + 1
    b = jnp.log(smoothed / smoothed.sum()).astype(dtype)
    return params._replace(output=params.output._replace(b=b))


def output_layer(params: LanguageModelParams) -> OutputParams:
    """The output layer's weights and bias, also where the weights are the embedding's."""
    if isinstance(params.output, OutputParams):
        return params.output
    assert params.embedding is not None
    return OutputParams(params.embedding.T, params.output.b)


@dataclass(frozen=True)
class LanguageModel:
    """Token ids -> one-hot or embedding -> recurrent stack -> logits over the vocabulary.

    `init` draws the parameters; every other method is a pure function of them.

    Examples:
        >>> config = lstm_jax.LanguageModelConfig(layers=2, hidden_size=16)
        >>> model = lstm_jax.LanguageModel(config, vocabulary_size=5)
        >>> params = model.init(jax.random.key(0))
        >>> tokens = jnp.arange(22).reshape(11, 2) % 5
        >>> sums, carry = model.token_sums(params, None, tokens[:-1], tokens[1:])
        >>> float(sums.weight), model.apply(params, carry, tokens)[1].shape
        (20.0, (11, 2, 5))
    """

    config: LanguageModelConfig
    vocabulary_size: int

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> LanguageModelParams:
        """Draw the parameters from a typed key; see `init_lstm` for `dtype`."""
        config, size, drawn = self.config, self.vocabulary_size, draw_dtype(dtype)
        key_embedding, key_layers, key_output = random.split(key, 3)
        embedding = None
        if config.embedding_size is not None:
            shape = (size, config.embedding_size)
            if config.embedding_stddev is None:
                embedding = init_embedding(key_embedding, config.initialisation, shape, drawn)
            else:
                embedding = config.embedding_stddev * random.normal(key_embedding, shape, drawn)
        params = LanguageModelParams(
            embedding,
            init_stack(key_layers, config, config.embedding_size or size, drawn),
            _init_output(key_output, config, size, drawn),
        )
        return cast_tree(params, dtype)

    def zero_carry(self, params: LanguageModelParams, batch_size: int) -> tuple[Any, ...]:
        """The zero carry of `batch_size` new sequences."""
        return stack_zero_carry(params.layers, batch_size)

    def hidden(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...] | None,
        tokens: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[tuple[Any, ...], Array]:
        """Run everything but the output layer.

        Args:
            params: from `init`.
            carry: from `zero_carry` or an earlier call; None starts with zeros.
            tokens: integers `[T, B]`.
            mask: bool `[T, B]`, True = a real token.
            resets: bool `[T, B]`, True = a new sequence starts here.
            dropout_key: a typed key, or one per sequence, `[B]`; None disables dropout.

        Returns:
            The carry after the last token, and hidden states `[T, B, H]`.
        """
        params = self._folded(params, tokens, dropout_key is not None)
        return self._hidden(params, carry, tokens, mask, resets, (dropout_key, None))

    def _hidden(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...] | None,
        tokens: Array,
        mask: Array | None,
        resets: Array | None,
        dropout: _Dropout,
        axis: str | None = None,
    ) -> tuple[tuple[Any, ...], Array]:
        config, xs = self.config, tokens
        if params.embedding is not None and axis is not None:
            tokens = jnp.clip(tokens, 0, self.vocabulary_size - 1)
            xs = look_up_split(params.embedding, tokens, axis)
        elif params.embedding is not None:
            xs = look_up(params.embedding, tokens)
        key, chunk = dropout
        if config.word_dropout and key is not None:
            require_key("dropout_key", key, tokens)
            rows = tokens.shape[1]
            sizes = (rows, self.vocabulary_size)
            words = fold(key, config.layers + 1)
            scale_BV = dropout_mask(words, config.word_dropout, sizes, xs.dtype)
            xs *= scale_BV[jnp.arange(rows), tokens][..., None]
        carry, hs = run_stack(
            config, params.layers, carry, xs, mask=mask, resets=resets, dropout_key=key, chunk=chunk
        )
        if config.output_dropout and key is not None:
            shape = hs.shape
            if config.output_dropout_per != "time":
                shape = hs.shape[1:]
            elif chunk is not None:
                key = fold(key, chunk)
            key = fold(key, config.layers)
            hs *= dropout_mask(key, config.output_dropout, shape, hs.dtype)
        return carry, hs

    def apply(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...] | None,
        tokens: Array,
        **options: Unpack[SequenceOptions],
    ) -> tuple[tuple[Any, ...], Array]:
        """Like `hidden`, but returns the logits of each next token, `[T, B, V]`."""
        carry, hs_TBH = self.hidden(params, carry, tokens, **options)
        return carry, self.logits(params, hs_TBH)

    def step(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...],
        token: Array,
        *,
        allow_bidirectional: bool = False,
    ) -> tuple[tuple[Any, ...], Array]:
        """Run one token per sequence, as in decoding: integers `[B]` to carry and `h [B, H]`.

        `step_stack` explains `allow_bidirectional`.
        """
        x = token
        if params.embedding is not None:
            x = look_up(params.embedding, token)
        return step_stack(
            self.config, params.layers, carry, x, allow_bidirectional=allow_bidirectional
        )

    def logits(self, params: LanguageModelParams, hs: Array) -> Array:
        """Apply the output layer: `[..., H] -> [..., V]`."""
        policy, output = self._policy(params), params.output
        if isinstance(output, OutputParams):
            product = policy.dot(hs, output.w)
        else:
            assert params.embedding is not None
            # Not by `output_layer`: for one row XLA on CPU would transpose the embedding first.
            product = policy.einsum("...h,vh->...v", hs, params.embedding)
        return product + lax.broadcast_to_rank(output.b.astype(policy.accumulate), product.ndim)

    def token_sums(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...] | None,
        tokens: Array,
        targets: Array,
        *,
        axis: str | None = None,
        **options: Unpack[SequenceOptions],
    ) -> tuple[TokenSums, tuple[Any, ...]]:
        """Sum the cross-entropy (nats) and hits of `targets [T, B]`, never holding all logits.

        Options are those of `hidden`. The mean loss of the batch is `sums.loss / sums.weight`, the
        perplexity its exponential. A target outside the vocabulary, such as PyTorch's -100, is
        ignored; an input token outside it is clipped to the nearest id. Raises ValueError if
        targets are not integers with the shape of the tokens.

        Inside `shard_map`, `axis` names the mesh axis along which `vocabulary_specs` split the
        parameters, zero-padded as needed; the sums cover the rows of all its devices (see
        `fused_cross_entropy`).
        """
        sums, _, carry = self.token_scores(params, carry, tokens, targets, axis=axis, **options)
        return sums, carry

    def token_scores(
        self,
        params: LanguageModelParams,
        carry: tuple[Any, ...] | None,
        tokens: Array,
        targets: Array,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        dropout_key: Array | None = None,
        axis: str | None = None,
    ) -> tuple[TokenSums, TokenScores, tuple[Any, ...]]:
        """Like `token_sums`, but also returns the loss and hit of each token, `[T, B]`."""
        check_targets(targets, tokens)
        output, policy, remat = output_layer(params), self._policy(params), self.config.remat
        if axis is None:
            params = self._folded(params, tokens, dropout_key is not None)
        else:
            output = self._mask_padding(policy, output, axis)
            targets = jnp.where(targets < self.vocabulary_size, targets.astype(jnp.int32), -1)

        def score(
            carry: Any, inputs: Any, dropout: _Dropout
        ) -> tuple[TokenSums, TokenScores, tuple[Any, ...]]:
            tokens, targets, mask, resets = inputs
            carry, hs_TBH = self._hidden(params, carry, tokens, mask, resets, dropout, axis)
            return *fused_cross_entropy(policy, None, output, hs_TBH, targets, mask, axis), carry

        inputs = (tokens, targets, mask, resets)
        if not is_shorter(remat, tokens.shape[0]) or self.config.bidirectional:
            return score(carry, inputs, (dropout_key, None))
        # The loss is inside the chunks too, so that not even the layers' outputs all exist at once.

        def body(state: Any, inputs: Any, index: Array) -> tuple[Any, TokenScores]:
            before, carry = state
            sums, scores, carry = score(carry, inputs, (dropout_key, index))
            return (jax.tree.map(jnp.add, before, sums), carry), scores

        if carry is None:
            carry = self.zero_carry(params, tokens.shape[1])
        carry = cast_tree(carry, policy.accumulate)
        zero = jnp.zeros((), policy.accumulate)
        zero, carry = vary_as(tokens, (zero, carry))
        if axis is not None:
            zero = lax.psum(zero, axis)
        state = (TokenSums(zero, zero, zero), carry)
        (sums, carry), scores = scan_rematerialised(body, state, inputs, remat)
        return sums, scores, carry

    def vocabulary_specs(self, axis: str) -> Any:
        """Partition specs that split the parameters by vocabulary along a mesh axis.

        A prefix tree of the parameters, as `jax.shard_map` takes it.
        """
        rows: Any = PartitionSpec(axis)
        columns: Any = PartitionSpec(None, axis)
        whole: Any = PartitionSpec()
        return LanguageModelParams(
            None if self.config.embedding_size is None else rows,
            whole,
            TiedOutputParams(rows) if self.config.tied else OutputParams(columns, rows),
        )

    def _mask_padding(self, policy: Products, output: OutputParams, axis: str) -> OutputParams:
        """A slice of the output layer, in which padding tokens have probability zero."""
        size = output.b.shape[0]
        is_token = lax.axis_index(axis) * size + jnp.arange(size) < self.vocabulary_size
        b = jnp.where(is_token, output.b.astype(policy.accumulate), -1e30)
        return output._replace(b=b)

    def folded(self, params: LanguageModelParams) -> LanguageModelParams:
        """Parameters of the same network without an embedding, for `hidden` alone.

        The first layer's input weights are multiplied by it, so that a token is looked up there.
        """
        if params.embedding is None or self.config.backend == "cudnn":
            return params  # cuDNN would need one-hot rows of the tokens
        policy, embedding = self._policy(params), params.embedding

        def fold(layer: Any) -> Any:
            if self.config.backend == "reference":
                return layer._replace(w_x=policy.dot(embedding, layer.w_x))
            return layer._replace(w_x=time_product(policy, embedding[None], layer.w_x)[0])

        layers = (each_direction(fold, params.layers[0]), *params.layers[1:])
        return params._replace(embedding=None, layers=layers)

    def _folded(
        self, params: LanguageModelParams, tokens: Array, training: bool
    ) -> LanguageModelParams:
        """Parameters with the embedding folded into the first layer, if that is cheaper.

        With fewer distinct tokens than positions in the batch, it is cheaper to multiply the whole
        embedding by the first layer's input weights than to do so at every position.
        """
        config = self.config
        drops_inputs = config.word_dropout or (config.dropout_place == "inputs" and config.dropout)
        if params.embedding is None or (training and drops_inputs):
            return params
        return self.folded(params) if outnumber(tokens, params.embedding) else params

    def _policy(self, params: LanguageModelParams) -> Products:
        return products(self.config.compute_dtype, params.output.b.dtype)


def _init_output(
    key: Array, config: LanguageModelConfig, vocabulary_size: int, dtype: DTypeLike
) -> OutputParams | TiedOutputParams:
    if config.tied:
        return TiedOutputParams(jnp.zeros(vocabulary_size, dtype))
    size = config.output_size
    if config.output_stddev is None:
        affine = init_affine(key, config.initialisation, size, vocabulary_size, dtype)
        return OutputParams(*affine)
    normal = initializers.truncated_normal if config.output_truncated else initializers.normal
    w = normal(config.output_stddev)(key, (size, vocabulary_size), dtype)
    return OutputParams(w, jnp.zeros(vocabulary_size, dtype))
