"""LSTM and GRU networks in JAX, as pure functions, with complete systems built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_jax.cells import (
    Cell,
    DiagGRUCarry,
    DiagGRUParams,
    DiagLSTMCarry,
    DiagLSTMParams,
    GRUBeforeParams,
    GRUCarry,
    GRUParams,
    LNGRUParams,
    LNLSTMParams,
    LSTMCarry,
    LSTMParams,
    MGUParams,
    MinGRUCarry,
    MinGRUParams,
    MinLSTMCarry,
    MinLSTMParams,
    RNNCarry,
    RNNParams,
    declare_cell,
    diag_gru_step,
    diag_lstm_step,
    gru_step,
    init_diag_gru,
    init_diag_lstm,
    init_gru,
    init_ln_gru,
    init_ln_lstm,
    init_lstm,
    init_mgu,
    init_mingru,
    init_minlstm,
    init_rnn,
    ln_gru_step,
    ln_lstm_step,
    lstm_step,
    mgu_step,
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
from lstm_jax.plain_layers import diag_gru, diag_lstm, ln_gru, ln_lstm, mgu, mingru, minlstm
from lstm_jax.recurrence import gru, layer, lstm, rnn
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
    "Cell",
    "Classifier",
    "ClassifierConfig",
    "ClassifierParams",
    "DiagGRUCarry",
    "DiagGRUParams",
    "DiagLSTMCarry",
    "DiagLSTMParams",
    "Directions",
    "GRUBeforeParams",
    "GRUCarry",
    "GRUParams",
    "LNGRUParams",
    "LNLSTMParams",
    "LSTMCarry",
    "LSTMParams",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelParams",
    "MGUParams",
    "MinGRUCarry",
    "MinGRUParams",
    "MinLSTMCarry",
    "MinLSTMParams",
    "RNNCarry",
    "RNNParams",
    "SolverInfo",
    "StackConfig",
    "declare_cell",
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
    "init_ln_gru",
    "init_ln_lstm",
    "init_lstm",
    "init_mgu",
    "init_mingru",
    "init_minlstm",
    "init_rnn",
    "init_stack",
    "layer",
    "ln_gru",
    "ln_gru_step",
    "ln_lstm",
    "ln_lstm_step",
    "load",
    "lstm",
    "lstm_step",
    "mgu",
    "mgu_step",
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
