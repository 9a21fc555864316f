"""LSTM and GRU networks in JAX, as pure functions, with complete systems built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_jax.cells import (
    DiagGRUCarry,
    DiagGRUParams,
    DiagLSTMCarry,
    DiagLSTMParams,
    GRUCarry,
    GRUParams,
    LSTMCarry,
    LSTMParams,
    MinGRUCarry,
    MinGRUParams,
    MinLSTMCarry,
    MinLSTMParams,
    RNNCarry,
    RNNParams,
    diag_gru_step,
    diag_lstm_step,
    gru_step,
    init_diag_gru,
    init_diag_lstm,
    init_gru,
    init_lstm,
    init_mingru,
    init_minlstm,
    init_rnn,
    lstm_step,
    mingru_step,
    minlstm_step,
    rnn_step,
    zero_carry,
)
from lstm_jax.classifier import Classifier, ClassifierConfig, ClassifierParams
from lstm_jax.dropout import weight_drop
from lstm_jax.kernels.solver import SolverInfo
from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams
from lstm_jax.own_steps import parallel
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
from lstm_jax.unitwise import diag_gru, diag_lstm, mingru, minlstm

if TYPE_CHECKING:
    from lstm_jax.training.run import load

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "ClassifierParams",
    "DiagGRUCarry",
    "DiagGRUParams",
    "DiagLSTMCarry",
    "DiagLSTMParams",
    "Directions",
    "GRUCarry",
    "GRUParams",
    "LSTMCarry",
    "LSTMParams",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelParams",
    "MinGRUCarry",
    "MinGRUParams",
    "MinLSTMCarry",
    "MinLSTMParams",
    "RNNCarry",
    "RNNParams",
    "SolverInfo",
    "StackConfig",
    "diag_gru",
    "diag_gru_step",
    "diag_lstm",
    "diag_lstm_step",
    "generate",
    "gru",
    "gru_step",
    "init_diag_gru",
    "init_diag_lstm",
    "init_gru",
    "init_lstm",
    "init_mingru",
    "init_minlstm",
    "init_rnn",
    "init_stack",
    "load",
    "lstm",
    "lstm_step",
    "mingru",
    "mingru_step",
    "minlstm",
    "minlstm_step",
    "parallel",
    "rnn",
    "rnn_step",
    "run_stack",
    "stack_zero_carry",
    "step_stack",
    "weight_drop",
    "zero_carry",
]


def __getattr__(name: str) -> Any:
    """Import `load` on first use, since it pulls in flax, optax and orbax."""
    if name == "load":
        from lstm_jax.training import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
