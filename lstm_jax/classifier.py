"""Binary classification of whole sequences: one logit per sequence.

Shapes: T time, B batch, E embedding, H hidden size (2H if bidirectional), F features, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import DTypeLike

from lstm_jax.cells import look_up
from lstm_jax.checks import check_flags, require_array, require_key
from lstm_jax.dropout import dropout_mask, fold
from lstm_jax.initialisation import init_affine, init_embedding
from lstm_jax.losses import OutputParams, TokenSums
from lstm_jax.precision import cast_tree, draw_dtype, products, time_product
from lstm_jax.settings import Changeable, Share, Size, SizeOrZero
from lstm_jax.sharding import vary_as
from lstm_jax.stack import StackConfig, init_stack, last_states, run_stack

Pooling = Literal["last", "max", "mean"]


class ClassifierParams(NamedTuple):
    """Parameters of a classifier.

    Attributes:
        embedding: `[V, E]`, or None with frozen vectors; with `learn_missing`, the learned vectors
            of words that have no frozen one.
        layers: parameters of the stack.
        dense: hidden layer between the pooled features and the logit, or None.
        output: `w [F, 1]` and `b [1]`.
        vectors: frozen word vectors `[V, E]` with `frozen_embedding`, else None. `init` fills them
            with zeros; replace them with `params._replace(vectors=...)`.

    Examples:
        >>> config = lstm_jax.ClassifierConfig(embedding_size=3, hidden_size=4, dense_size=0)
        >>> params = lstm_jax.Classifier(config, vocabulary_size=5).init(jax.random.key(0))
        >>> params.embedding.shape, params.dense, params.output.w.shape
        ((5, 3), None, (4, 1))
    """

    embedding: Array | None
    layers: tuple[Any, ...]
    dense: OutputParams | None
    output: OutputParams
    vectors: Array | None = None


@dataclass(frozen=True)
class ClassifierConfig(StackConfig):
    """Settings of a classifier: a stack between token ids and one logit per sequence.

    Attributes:
        embedding_size: E, the size of a word vector.
        frozen_embedding: keep the word vectors fixed during training.
        learn_missing: learn a vector, from zeros, for each word whose frozen vector is zero.
        pooling: how the stack's outputs become one vector: each direction's "last" state, or the
            "max" or "mean" of the top layer's outputs over the real steps.
        dense_size: units of the ReLU layer before the logit; 0 leaves it out.
        dense_dropout: dropout rate on the outputs of that layer.
        word_dropout: probability of zeroing a word's vector in training, drawn independently for
            each word of a sequence (Iyyer et al. 2015); the other vectors are not rescaled.

    Examples:
        >>> lstm_jax.ClassifierConfig(hidden_size=4, bidirectional=True, pooling="max").output_size
        8
    """

    embedding_size: Size = 50
    frozen_embedding: bool = False
    learn_missing: bool = False
    pooling: Pooling = "last"
    dense_size: SizeOrZero = 32
    dense_dropout: Changeable[Share] = 0.5
    word_dropout: Share = 0.0


@dataclass(frozen=True)
class Classifier:
    """Token ids -> word vectors -> recurrent stack -> pooling -> dense ReLU layer -> one logit.

    `init` draws the parameters; every other method is a pure function of them.

    Examples:
        >>> config = lstm_jax.ClassifierConfig(embedding_size=3, hidden_size=4)
        >>> model = lstm_jax.Classifier(config, vocabulary_size=5)
        >>> params = model.init(jax.random.key(0))
        >>> tokens = jnp.arange(20).reshape(10, 2) % 5
        >>> sums = model.sums(params, tokens, labels=jnp.array([0, 1]))
        >>> model.logits(params, tokens).shape, float(sums.weight)
        ((2,), 2.0)
    """

    config: ClassifierConfig
    vocabulary_size: int

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> ClassifierParams:
        """Draw the parameters from a typed key; see `init_lstm` for `dtype`."""
        config, drawn = self.config, draw_dtype(dtype)
        draw = config.initialisation
        key_embedding, key_layers, key_dense, key_output = random.split(key, 4)
        embedding = dense = vectors = None
        shape = (self.vocabulary_size, config.embedding_size)
        if config.frozen_embedding:
            vectors = jnp.zeros(shape, drawn)
            embedding = jnp.zeros(shape, drawn) if config.learn_missing else None
        else:
            embedding = init_embedding(key_embedding, draw, shape, drawn)
        features = config.output_size
        if config.dense_size:
            dense = OutputParams(*init_affine(key_dense, draw, features, config.dense_size, drawn))
            features = config.dense_size
        params = ClassifierParams(
            embedding,
            init_stack(key_layers, config, config.embedding_size, drawn),
            dense,
            OutputParams(*init_affine(key_output, draw, features, 1, drawn)),
            vectors,
        )
        return cast_tree(params, dtype)

    def logits(
        self,
        params: ClassifierParams,
        tokens: Array,
        *,
        mask: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Compute one logit per sequence; its sigmoid is the probability of label 1.

        Args:
            params: from `init`.
            tokens: integers `[T, B]`.
            mask: bool `[T, B]`, True = a real token; a sequence without any is pooled to zeros.
            dropout_key: a typed key, or one per sequence, `[B]`; None disables dropout.

        Returns:
            Logits `[B]`.

        Raises:
            ValueError: shapes or dtypes do not match, or `params.vectors` contradicts the config.
            TypeError: `dropout_key` is no typed key.
        """
        _check(tokens, mask)
        config = self.config
        key_stack = key_dense = key_words = None
        if dropout_key is not None:
            require_key("dropout_key", dropout_key, tokens)
            key_stack, key_dense, key_words = (fold(dropout_key, number) for number in range(3))
        xs_TBE = look_up(self.word_vectors(params), tokens)
        if key_words is not None and config.word_dropout:
            words_TB1 = (*tokens.shape, 1)
            is_kept_TB1 = dropout_mask(key_words, config.word_dropout, words_TB1, xs_TBE.dtype) > 0
            xs_TBE = jnp.where(is_kept_TB1, xs_TBE, 0)
        carry, hs_TBH = run_stack(
            config, params.layers, None, xs_TBE, mask=mask, dropout_key=key_stack
        )
        xs_BF = last_states(carry[-1]) if config.pooling == "last" else _pool(config, hs_TBH, mask)
        if params.dense is not None:
            xs_BF = jax.nn.relu(self._affine(params.dense, xs_BF))
            if key_dense is not None and config.dense_dropout:
                xs_BF *= dropout_mask(key_dense, config.dense_dropout, xs_BF.shape, xs_BF.dtype)
        return self._affine(params.output, xs_BF)[:, 0]

    def sums(
        self,
        params: ClassifierParams,
        tokens: Array,
        labels: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        dropout_key: Array | None = None,
    ) -> TokenSums:
        """Sum the binary cross-entropy (nats) and the correct predictions over sequences.

            loss = sum_b weights[b] (log(1 + exp(z[b])) - labels[b] z[b])
            correct = sum_b weights[b] [(z[b] > 0) = labels[b]]

        Arguments are those of `logits`, and `labels [B]`, 0 or 1; a sequence with any other label,
        such as -100, is ignored. `weights [B]` are 1 by default; a sequence of weight 0 is padding
        and contributes nothing to sums or gradients, whatever it contains.

        Raises:
            ValueError: as for `logits`, or labels or weights are not `[B]`.
        """
        _check(tokens, mask)
        for name, array in (("labels", labels), ("weights", weights)):
            if array is not None and array.shape != tokens.shape[1:]:
                raise ValueError(f"{name} have shape {array.shape}; expected {tokens.shape[1:]}")
        if weights is not None:
            # With every step masked, a padding row cannot bring a NaN into the weight gradients.
            counts_TB = jnp.broadcast_to(weights != 0, tokens.shape)
            mask = counts_TB if mask is None else mask & counts_TB
        logits_B = self.logits(params, tokens, mask=mask, dropout_key=dropout_key)
        dtype, is_label_B = logits_B.dtype, (labels == 0) | (labels == 1)
        weights_B = jnp.where(is_label_B, 1 if weights is None else weights, 0).astype(dtype)
        # Select, and before the loss rather than after it: multiplying by 0 would keep a NaN.
        logits_B = jnp.where(weights_B == 0, 0, logits_B)
        is_one_B = labels.astype(bool)
        # softplus(z) = max(z, 0) + log1p(exp(-|z|)), which never overflows.
        loss_B = jax.nn.softplus(jnp.where(is_one_B, -logits_B, logits_B))
        return TokenSums(
            loss=jnp.sum(loss_B * weights_B),
            correct=jnp.sum(jnp.where((logits_B > 0) == is_one_B, weights_B, 0)),
            weight=jnp.sum(weights_B),
        )

    def word_vectors(self, params: ClassifierParams) -> Array:
        """Word vectors `[V, E]`: trained, frozen, or frozen with learned ones where they are zeros.

        Raises:
            ValueError: `params.vectors` is missing, unexpected, or has another shape or dtype.
        """
        vectors, shape = params.vectors, (self.vocabulary_size, self.config.embedding_size)
        if not self.config.frozen_embedding:
            if vectors is None and params.embedding is not None:
                return params.embedding
            raise ValueError(
                "this embedding is trained: params.embedding is needed and params.vectors is "
                "None, or set frozen_embedding"
            )
        found = None if vectors is None else f"{vectors.dtype} of shape {vectors.shape}"
        is_floats = vectors is not None and jnp.issubdtype(vectors.dtype, jnp.floating)
        if vectors is None or vectors.shape != shape or not is_floats:
            raise ValueError(
                f"params.vectors is {found}; frozen_embedding needs floats {shape}, "
                "vocabulary_size by embedding_size"
            )
        vectors = lax.stop_gradient(vectors)
        if params.embedding is None:
            return vectors
        return jnp.where(jnp.any(vectors != 0, axis=1, keepdims=True), vectors, params.embedding)

    def _affine(self, params: OutputParams, xs_BF: Array) -> Array:
        policy = products(self.config.compute_dtype, params.w.dtype)
        if self.config.backend == "reference":
            product = policy.dot(xs_BF, params.w)
        else:
            params = vary_as(xs_BF, params)
            product = time_product(policy, xs_BF[None], params.w)[0]
        return product + params.b.astype(policy.accumulate)[None]


def _check(tokens: Array, mask: Array | None) -> None:
    require_array("tokens", tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != 2:
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tokens.shape}; expected integers [T, B], time "
            "first"
        )
    check_flags("mask", mask, tokens.shape)


def _pool(config: ClassifierConfig, hs_TBH: Array, mask_TB: Array | None) -> Array:
    """The maximum or mean over the real steps, or zeros if there are none."""
    if not hs_TBH.shape[0]:
        return hs_TBH.sum(0)
    if mask_TB is None:
        return hs_TBH.max(0) if config.pooling == "max" else hs_TBH.mean(0)
    if config.pooling == "mean":
        # Masked outputs are already zero.
        counts_B = jnp.maximum(1, mask_TB.sum(0)).astype(hs_TBH.dtype)
        return hs_TBH.sum(0) / counts_B[:, None]
    highest_BH = jnp.where(mask_TB[..., None], hs_TBH, -jnp.inf).max(0)
    return jnp.where(mask_TB.any(0)[:, None], highest_BH, 0)
