"""What our loops keep in a TPU's fast memory, as compiled for one; only libtpu is needed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from bench import vmem
from bench.programs import Program

ROOT = Path(__file__).parents[2]
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
        as_text=lambda: HLO,
        memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=5_000_000),
    )
    program = Program("f", "bfloat16", 9, lambda: None, ())
    (loop,) = vmem.loops_of("v5e", program, compiled)
    assert (loop.layer, loop.direction, loop.temporary_mb) == ("lstm_0", "backward", 5)
    kept = (loop.kept_mb, loop.kept_in_vmem_mb, loop.timed_mb, loop.timed_in_vmem_mb)
    assert kept == pytest.approx((192e-6, 64e-6, 2304e-6, 1152e-6))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="no libtpu: pip install '.[tpu]'")
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
def test_weights_and_carry_stay_in_vmem(chip: str, flags: str, rows: int, tmp_path: Path) -> None:
    """Through all steps of every loop over time, in float32 and in bfloat16."""
    if chip == "v6e" and "systems" in flags and jax.__version_info__ < (0, 11):
        pytest.skip("jax 0.10 cannot print what libtpu makes of a step for a v6e")
    file = tmp_path / "rows.jsonl"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "bench", "vmem", "--chips", chip, "--json", str(file)]
    subprocess.run([*command, *flags.split()], check=True, cwd=ROOT, env=environment)
    found = list(map(json.loads, file.read_text().splitlines()))
    assert len(found) == rows
    for row in found:
        assert row["kept_in_vmem_mb"] == row["kept_mb"] > 0, row


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"nothing here compiles for a TPU .*'\.\[tpu\]'"):
        vmem.main(["--quick"])
