"""What our loops launch on a GPU, as compiled for one; no GPU is needed, but its compiler is."""

import re
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from bench import launches
from bench.__main__ import main
from bench.programs import Program

compiles_for_cuda = pytest.mark.skipif(
    not any(
        plugin.name.startswith("xla_cuda") for plugin in metadata.entry_points(group="jax_plugins")
    ),
    reason="no compiler for CUDA is installed: pip install '.[cuda]'",
)

THUNKS = """\
000: kCommandBuffer [source | sink]
    001: kCopy         [source | next=002 (1)] kCopy
    002: kWhile        [prev=001 (1) | next=010 (1)]
condition:
        003: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
      body:
        004: kDynamicSliceFusion [source | next=006 (1)] params=3, results=2
            005: kCublasLtMatmul [source | sink] kCublasLtMatmul
        006: kCustomKernel [prev=004 (1) | next=007 (1)] gemm_fusion_dot grid: [7168, 1, 1]
        007: kAsyncStart   [prev=006 (1) | sink] stream=computation_stream[0], async_id=7
            008: kCopy [source | sink] kCopy
        009: kAsyncDone    [source | sink] async_id=7
    010: kCustomKernel [prev=002 (1) | sink] loop_add_fusion grid: [1, 1, 1]
011: kWhile        [prev=000 (1) | sink]
condition:
    012: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
  body:
    013: kCustomKernel [source | sink] loop_exponential_fusion grid: [1, 1, 1]
"""
HLO = """HloModule jit_f

ENTRY %main {
  %a = (f32[]) while(%t), metadata={op_name="jit(f)/transpose(jvp(gru_1))/while"}, \
backend_config={"known_trip_count":{"n":"5"}}
  %b = (f32[]) while(%a), metadata={op_name="jit(f)/jvp()/while"}, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_what_is_launched_is_counted_a_time_step() -> None:
    """Neither what only holds others, nor conditions, nor what lies outside or in other loops."""
    memory = SimpleNamespace(temp_size_in_bytes=5_000_000)
    compiled = SimpleNamespace(as_text=lambda: HLO, memory_analysis=lambda: memory)
    program = Program("f", "tf32", 10, lambda: None, ())
    (loop,) = launches.loops_of(program, compiled, THUNKS)
    about = {"program": "f", "dtype": "tf32", "layer": "gru_1", "direction": "backward"}
    counts = {"kernels": 0, "products": 1, "copies": 0.5, "launches": 1.5, "unroll": 2}
    assert loop == {**about, **counts, "in_one_graph": True, "temporary_mb": 5}


@pytest.mark.slow
@compiles_for_cuda
@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ("--quick", 2 * 3 * 3),
        ("--dtypes tf32 --cells --systems lyrics-gru", 2),
        ("--dtypes tf32 --cells --systems reviews", 2),
    ],
)
def test_layers_and_steps_launch_at_most_three_forward_and_four_backward(
    flags: str, rows: int, rows_compiled: Callable[..., Any]
) -> None:
    """A time step, in every dtype; nothing is copied, and a loop is one graph."""
    found = rows_compiled("launches", flags)
    assert len(found) >= rows
    assert {row["direction"] for row in found} == {"forward", "backward"}
    for row in found:
        assert row["launches"] <= (3 if row["direction"] == "forward" else 4), row
        assert row["copies"] == 0, row
        assert row["in_one_graph"], row


@pytest.mark.slow
@compiles_for_cuda
def test_units_that_act_each_on_its_own_have_no_loop_over_time(
    rows_compiled: Callable[..., Any],
) -> None:
    """Chosen while lowering: of five cells compiled on a CPU, the LSTM alone has one."""
    cells = "lstm mingru minlstm diag-gru diag-lstm"
    found = rows_compiled("launches", f"--quick --dtypes float32 --shapes 16,4,8,8 --cells {cells}")
    assert [row["layer"] for row in found] == 3 * ["lstm_0"]


@pytest.mark.slow
@compiles_for_cuda
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax 0.10 has not all that it needs")
@pytest.mark.parametrize(
    ("hidden_size", "masked"),
    [
        (size, masked)
        for size in range(64, 1025, 64)
        for masked in (False, True)
        if masked or size <= 256
    ],
)
def test_the_recurrence_as_one_kernel_spills_nothing_and_has_the_memory(
    hidden_size: int, masked: bool, rows_compiled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Registers as reported by ptxas, and shared memory of a block."""
    rows = 100 if hidden_size <= 512 else 64
    flags = f"--quick --cells lstm gru --dtypes tf32 bfloat16 --shapes 35,{rows},64,{hidden_size}"
    flags += " --backend mosaic" + " --masked" * masked
    dump = {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_RESOURCES": "1"}
    assert rows_compiled("launches", flags, **dump) == []
    told = "".join(capfd.readouterr())
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", told)
    memory = re.findall(r"smem_scratch_bytes=(\d+)", told)
    assert len(spills) == len(memory) == 2 * 2 * 3, "inference, and training forward and backward"
    assert set(spills) == {("0", "0")}
    barriers_and_reductions = 3 * 1024
    assert max(map(int, memory)) + barriers_and_reductions <= 232_448


@pytest.mark.skipif(not compiles_for_cuda.args[0], reason="a compiler for CUDA is installed")
def test_without_a_compiler_for_cuda_the_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"nothing here compiles for a CUDA GPU .*'\.\[cuda\]'"):
        main(["launches", "--quick"])
