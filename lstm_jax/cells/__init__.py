"""Recurrent cells: parameters, carry, step function and initialisation of each.

To add a cell, declare its `Cell` in a file here and add it to `CellName` and `CELLS`.
"""

from typing import Any, Literal

from lstm_jax.cells.base import (
    Cell,
    cell_of,
    check_carry,
    check_shapes,
    look_up,
    outnumber,
    require_cell,
    rest_of_step,
    unit_params,
    with_biases,
    zero_carry,
)
from lstm_jax.cells.diagonal import (
    DIAG_GRU,
    DIAG_LSTM,
    DiagGRUCarry,
    DiagGRUParams,
    DiagLSTMCarry,
    DiagLSTMParams,
    diag_gru_step,
    diag_lstm_step,
    init_diag_gru,
    init_diag_lstm,
)
from lstm_jax.cells.gru import (
    GRU,
    GRUBeforeParams,
    GRUCarry,
    GRUParams,
    GRUReset,
    gru_step,
    init_gru,
)
from lstm_jax.cells.layernorm import (
    LN_GRU,
    LN_LSTM,
    LNGRUParams,
    LNLSTMParams,
    init_ln_gru,
    init_ln_lstm,
    ln_gru_step,
    ln_lstm_step,
)
from lstm_jax.cells.lstm import LSTM, LSTMCarry, LSTMParams, init_lstm, lstm_step
from lstm_jax.cells.mgu import MGU, MGUParams, init_mgu, mgu_step
from lstm_jax.cells.minimal import (
    MINGRU,
    MINLSTM,
    MinGRUCarry,
    MinGRUParams,
    MinLSTMCarry,
    MinLSTMParams,
    init_mingru,
    init_minlstm,
    mingru_step,
    minlstm_step,
)
from lstm_jax.cells.options import Activation, StepOptions, check_scales, chosen, option_names
from lstm_jax.cells.own import declare_cell
from lstm_jax.cells.rnn import RNN, RNNCarry, RNNParams, init_rnn, rnn_step

CellName = Literal[
    "rnn", "lstm", "gru", "ln-lstm", "ln-gru", "mgu", "mingru", "minlstm", "diag-gru", "diag-lstm"
]
CELLS = (RNN, LSTM, GRU, LN_LSTM, LN_GRU, MGU, MINGRU, MINLSTM, DIAG_GRU, DIAG_LSTM)

DenseParams = RNNParams | LSTMParams | GRUParams
"""Cells that other frameworks have too."""

Params = Any
"""Parameters of any cell, including those that users declare."""


def cell_named(name: str | Cell) -> Cell:
    """The cell with this name, or the given one; raises ValueError if there is none."""
    if isinstance(name, Cell):
        return name
    for cell in CELLS:
        if cell.name == name:
            return cell
    raise ValueError(f"cell is {name!r}; choose one of {', '.join(c.name for c in CELLS)}")
