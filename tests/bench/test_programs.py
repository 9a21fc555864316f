"""Our loops, as compiled for a TPU and a GPU: neither is needed, but libtpu and CUDA's compiler."""

import re
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from bench import launches, vmem
from bench.__main__ import main
from bench.programs import Program

HAS_LIBTPU = find_spec("libtpu") is not None
HAS_CUDA = any(
    plugin.name.startswith("xla_cuda") for plugin in metadata.entry_points(group="jax_plugins")
)
compiles_for_tpu = pytest.mark.skipif(not HAS_LIBTPU, reason="no libtpu: pip install '.[tpu]'")
compiles_for_cuda = pytest.mark.skipif(
    not HAS_CUDA, reason="no compiler for CUDA is installed: pip install '.[cuda]'"
)

HLO = """HloModule jit_f

ENTRY %main {
  %a = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, f32[8,4]{1,0:T(8,128)}, s32[9]{0:S(1)}, \
f32[9,8,4]{2,1,0:T(8,128)S(1)}, f32[9,8,4]{2,1,0:T(8,128)}) while(%t), \
metadata={op_name="jit(f)/transpose(jvp(lstm_1))/while"}, \
backend_config={"known_trip_count":{"n":"5"}}
  %b = (f32[4]{0:T(128)}) while(%a), metadata={op_name="jit(f)/jvp()/while"}, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""
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
COMPILED = SimpleNamespace(
    as_text=lambda: HLO, memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=5_000_000)
)
PROGRAM = Program("f", "tf32", 10, lambda: None, ())
LOOP = {"program": "f", "dtype": "tf32", "layer": "lstm_1", "direction": "backward"}
LOOP |= {"temporary_mb": 5}


def test_what_lies_in_vmem_is_added_up() -> None:
    """Of loops over time alone; numbers and ids are no state."""
    (loop,) = vmem.loops_of(PROGRAM, COMPILED)
    kept = {"kept_mb": 192e-6, "kept_in_vmem_mb": 64e-6}
    timed = {"timed_mb": 2304e-6, "timed_in_vmem_mb": 1152e-6}
    assert loop == pytest.approx({**LOOP, **kept, **timed})


def test_what_is_launched_is_counted_a_time_step() -> None:
    """Neither what only holds others, nor conditions, nor what lies outside or in other loops."""
    (loop,) = launches.loops_of(PROGRAM, COMPILED, THUNKS)
    counts = {"kernels": 0, "products": 1, "copies": 0.5, "launches": 1.5, "unroll": 2}
    assert loop == {**LOOP, **counts, "in_one_graph": True}


@pytest.mark.slow
@compiles_for_tpu
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
@compiles_for_tpu
def test_units_that_act_each_on_its_own_have_no_loop_over_time_on_a_tpu(
    rows_compiled: Callable[..., Any],
) -> None:
    """Newton's iterations are a loop, and the ways out, where it or its gradient fails."""
    cells = "lstm mingru minlstm diag-gru diag-lstm"
    flags = f"--chips v5e --quick --dtypes float32 --shapes 16,4,8,8 --cells {cells}"
    found = Counter(row["layer"] for row in rows_compiled("vmem", flags))
    assert found == {"lstm_0": 1 + 2, "diag-gru_0": 2 + 3, "diag-lstm_0": 2 + 3}


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
def test_units_that_act_each_on_its_own_have_no_loop_over_time_on_a_gpu(
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
    assert len(memory) == 2 * 2 * 3, "inference, and training forward and backward"
    # jax 0.12 compiles the kernel that inference and training share once.
    assert len(spills) == 2 * 2 * (3 if jax.__version_info__ < (0, 12) else 2)
    assert set(spills) == {("0", "0")}
    barriers_and_reductions = 3 * 1024
    assert max(map(int, memory)) + barriers_and_reductions <= 232_448


@pytest.mark.parametrize(
    ("bench", "is_there", "kind", "extra"),
    [("vmem", HAS_LIBTPU, "a TPU", "tpu"), ("launches", HAS_CUDA, "a CUDA GPU", "cuda")],
)
def test_without_a_compiler_the_extra_is_named(
    bench: str, is_there: bool, kind: str, extra: str
) -> None:
    if is_there:
        pytest.skip("it is installed")
    with pytest.raises(ValueError, match=rf"nothing here compiles for {kind} .*'\.\[{extra}\]'"):
        main([bench, "--quick"])
