"""What our loops keep in a TPU's fast memory, as compiled for one; only libtpu is needed."""

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from bench import vmem
from bench.__main__ import main
from bench.programs import Program

has_libtpu = pytest.mark.skipif(not find_spec("libtpu"), reason="no libtpu: pip install '.[tpu]'")
HLO = """HloModule jit_f

ENTRY %main {
  %a = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, f32[8,4]{1,0:T(8,128)}, s32[9]{0:S(1)}, \
f32[9,8,4]{2,1,0:T(8,128)S(1)}, f32[9,8,4]{2,1,0:T(8,128)}) while(%t), \
metadata={op_name="jit(f)/transpose(jvp(lstm_0))/while"}
  %b = (f32[4]{0:T(128)}) while(%a), metadata={op_name="jit(f)/jvp()/while"}
}
"""


def test_what_lies_in_vmem_is_added_up() -> None:
    """Of loops over time alone; numbers and ids are no state."""
    compiled = SimpleNamespace(
        as_text=lambda: HLO, memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=5_000_000)
    )
    program = Program("f", "bfloat16", 9, lambda: None, ())
    (loop,) = vmem.loops_of(program, compiled)
    assert (loop["layer"], loop["direction"], loop["temporary_mb"]) == ("lstm_0", "backward", 5)
    kept = [loop[f"{kind}_mb"] for kind in ("kept", "kept_in_vmem", "timed", "timed_in_vmem")]
    assert kept == pytest.approx((192e-6, 64e-6, 2304e-6, 1152e-6))


@pytest.mark.slow
@has_libtpu
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize(
    ("flags", "rows"),
    [("--quick", 2 * 2 * 3)]
    + [
        (f"--cells --systems {name}", rows)
        for name, rows in {
            "lyrics": 4, "lyrics-gru": 4, "shakespeare": 4, "anna": 8, "poems": 4, "reviews": 8
        }.items()
    ],
)  # fmt: skip
def test_weights_and_carry_stay_in_vmem(
    chip: str, flags: str, rows: int, rows_compiled: Callable[..., Any]
) -> None:
    """Through all steps of every loop over time, in float32 and in bfloat16."""
    if chip == "v6e" and "systems" in flags and jax.__version_info__ < (0, 11):
        pytest.skip("jax 0.10 cannot print what libtpu makes of a step for a v6e")
    found = rows_compiled("vmem", f"--chips {chip} {flags}")
    assert len(found) == rows
    for row in found:
        assert row["kept_in_vmem_mb"] == row["kept_mb"] > 0, row


@pytest.mark.slow
@has_libtpu
def test_units_that_act_each_on_its_own_have_no_loop_over_time(
    rows_compiled: Callable[..., Any],
) -> None:
    """Newton's iterations are a loop, and the ways out, where it or its gradient fails."""
    cells = "lstm mingru minlstm diag-gru diag-lstm"
    flags = f"--chips v5e --quick --dtypes float32 --shapes 16,4,8,8 --cells {cells}"
    found = Counter(row["layer"] for row in rows_compiled("vmem", flags))
    assert found == {"lstm_0": 1 + 2, "diag-gru_0": 2 + 3, "diag-lstm_0": 2 + 3}


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"nothing here compiles for a TPU .*'\.\[tpu\]'"):
        main(["vmem", "--quick"])
