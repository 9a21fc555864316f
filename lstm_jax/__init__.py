"""LSTM and GRU networks in JAX, as pure functions, with complete systems built on them."""

from typing import TYPE_CHECKING, Any

from lstm_jax.cells import Cell as Cell
from lstm_jax.cells import DiagGRUCarry as DiagGRUCarry
from lstm_jax.cells import DiagGRUParams as DiagGRUParams
from lstm_jax.cells import DiagLSTMCarry as DiagLSTMCarry
from lstm_jax.cells import DiagLSTMParams as DiagLSTMParams
from lstm_jax.cells import GRUBeforeParams as GRUBeforeParams
from lstm_jax.cells import GRUCarry as GRUCarry
from lstm_jax.cells import GRUParams as GRUParams
from lstm_jax.cells import LNGRUParams as LNGRUParams
from lstm_jax.cells import LNLSTMParams as LNLSTMParams
from lstm_jax.cells import LSTMCarry as LSTMCarry
from lstm_jax.cells import LSTMParams as LSTMParams
from lstm_jax.cells import MGUParams as MGUParams
from lstm_jax.cells import MinGRUCarry as MinGRUCarry
from lstm_jax.cells import MinGRUParams as MinGRUParams
from lstm_jax.cells import MinLSTMCarry as MinLSTMCarry
from lstm_jax.cells import MinLSTMParams as MinLSTMParams
from lstm_jax.cells import RNNCarry as RNNCarry
from lstm_jax.cells import RNNParams as RNNParams
from lstm_jax.cells import declare_cell as declare_cell
from lstm_jax.cells import diag_gru_step as diag_gru_step
from lstm_jax.cells import diag_lstm_step as diag_lstm_step
from lstm_jax.cells import gru_step as gru_step
from lstm_jax.cells import init_diag_gru as init_diag_gru
from lstm_jax.cells import init_diag_lstm as init_diag_lstm
from lstm_jax.cells import init_gru as init_gru
from lstm_jax.cells import init_ln_gru as init_ln_gru
from lstm_jax.cells import init_ln_lstm as init_ln_lstm
from lstm_jax.cells import init_lstm as init_lstm
from lstm_jax.cells import init_mgu as init_mgu
from lstm_jax.cells import init_mingru as init_mingru
from lstm_jax.cells import init_minlstm as init_minlstm
from lstm_jax.cells import init_rnn as init_rnn
from lstm_jax.cells import ln_gru_step as ln_gru_step
from lstm_jax.cells import ln_lstm_step as ln_lstm_step
from lstm_jax.cells import lstm_step as lstm_step
from lstm_jax.cells import mgu_step as mgu_step
from lstm_jax.cells import mingru_step as mingru_step
from lstm_jax.cells import minlstm_step as minlstm_step
from lstm_jax.cells import rnn_step as rnn_step
from lstm_jax.cells import zero_carry as zero_carry
from lstm_jax.classifier import Classifier as Classifier
from lstm_jax.classifier import ClassifierConfig as ClassifierConfig
from lstm_jax.classifier import ClassifierParams as ClassifierParams
from lstm_jax.dropout import weight_drop as weight_drop
from lstm_jax.kernels.solver import SolverInfo as SolverInfo
from lstm_jax.models import LanguageModel as LanguageModel
from lstm_jax.models import LanguageModelConfig as LanguageModelConfig
from lstm_jax.models import LanguageModelParams as LanguageModelParams
from lstm_jax.own_steps import parallel as parallel
from lstm_jax.plain_layers import diag_gru as diag_gru
from lstm_jax.plain_layers import diag_lstm as diag_lstm
from lstm_jax.plain_layers import ln_gru as ln_gru
from lstm_jax.plain_layers import ln_lstm as ln_lstm
from lstm_jax.plain_layers import mgu as mgu
from lstm_jax.plain_layers import mingru as mingru
from lstm_jax.plain_layers import minlstm as minlstm
from lstm_jax.recurrence import gru as gru
from lstm_jax.recurrence import layer as layer
from lstm_jax.recurrence import lstm as lstm
from lstm_jax.recurrence import rnn as rnn
from lstm_jax.sampling import generate as generate
from lstm_jax.stack import Directions as Directions
from lstm_jax.stack import StackConfig as StackConfig
from lstm_jax.stack import init_stack as init_stack
from lstm_jax.stack import run_stack as run_stack
from lstm_jax.stack import stack_zero_carry as stack_zero_carry
from lstm_jax.stack import step_stack as step_stack

if TYPE_CHECKING:
    from lstm_jax.training.run import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load` on first use, since it pulls in flax, optax and orbax."""
    if name == "load":
        from lstm_jax.training import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
