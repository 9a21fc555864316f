"""Validation of token ids."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def as_ids(ids: npt.ArrayLike, *, name: str = "ids") -> Ids:
    """Return `ids` as an int32 array [N], without a copy if it is one already; N may be 0.

    Raises ValueError, citing `name`, unless they are one-dimensional integers in [0, 2**31).
    """
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError):
        array = np.array(None)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one flat sequence of integers; flatten it")
    if array.size == 0:
        return np.zeros(0, np.int32)  # numpy makes an empty list float64
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}; pass what encode() gave")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= 2**31:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} must lie in [0, 2**31), found {wrong}; pass what encode() gave")
    return array.astype(np.int32, copy=False)
