"""What the sizes, shares and paths that callers give must be; and what an error says of them."""

import os
import stat

import numpy as np


def is_device(path: str | os.PathLike[str]) -> bool:
    """Whether reading it may never end, as with /dev/zero and with a terminal."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def check_size(name: str, value: object) -> None:
    """Refuse what is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got a {type(value).__name__}; use 1 or more")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}; use 1 or more")


def check_share(share: object) -> None:
    """Refuse what is not a number from 0 to below 1."""
    if isinstance(share, bool) or not isinstance(share, int | float | np.integer | np.floating):
        raise ValueError(
            f"share must be a number, got a {type(share).__name__}; use 0.1 for a tenth"
        )
    # A comparison with NaN is False, so NaN is refused here as well.
    if not 0 <= share < 1:
        raise ValueError(f"share must be from 0 to below 1, got {share}; use 0.1 for a tenth")


def one_line(error: Exception, most: int = 200) -> str:
    """Return what `error` says, on one line and in at most `most` characters."""
    return " ".join(str(error).split())[:most]
