"""LSTM and GRU networks in JAX: pure functions, scanned and jitted, and what runs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_jax.cells import (
    GRUCarry,
    GRUParams,
    LSTMCarry,
    LSTMParams,
    RNNCarry,
    RNNParams,
    gru_step,
    init_gru,
    init_lstm,
    init_rnn,
    lstm_step,
    rnn_step,
    zero_carry,
)
from lstm_jax.classifier import Classifier, ClassifierConfig, ClassifierParams
from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams
from lstm_jax.recurrence import gru, lstm, rnn
from lstm_jax.sampling import generate
from lstm_jax.stack import (
    Directions,
    StackConfig,
    init_stack,
    run_stack,
    stack_zero_carry,
    step_stack,
)

if TYPE_CHECKING:
    from lstm_jax.training.run import load

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "ClassifierParams",
    "Directions",
    "GRUCarry",
    "GRUParams",
    "LSTMCarry",
    "LSTMParams",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelParams",
    "RNNCarry",
    "RNNParams",
    "StackConfig",
    "generate",
    "gru",
    "gru_step",
    "init_gru",
    "init_lstm",
    "init_rnn",
    "init_stack",
    "load",
    "lstm",
    "lstm_step",
    "rnn",
    "rnn_step",
    "run_stack",
    "stack_zero_carry",
    "step_stack",
    "zero_carry",
]


def __getattr__(name: str) -> Any:
    """Imports the loaders, and with them flax, optax and orbax, when one is first asked for."""
    if name == "load":
        from lstm_jax.training import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
