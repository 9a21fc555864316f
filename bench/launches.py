"""Kernel launches on a GPU: our layers and steps compiled for an H100, without having one.

XLA compiles for a described card, so no GPU is needed, and nothing runs: the results are counts,
not times. For each loop over time the table has the launches of one iteration, divided by its
`unroll` time steps: of products, of other kernels, and of copies and fills of memory. Everything
is compiled with options that ask for whole loops in one CUDA graph. Without a card XLA cannot
autotune, so the kernels of products may differ from those of a real run; `--products cublas`
compiles them as cuBLAS calls instead of XLA's own kernels.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.programs import Program, Programs, Row, described, loops_in

GRAPH: Mapping[str, str | bool] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "xla_gpu_command_buffer_unroll_loops": True,
}
"""Compiler options that ask for a whole loop in one CUDA graph."""

# An H100 SXM, by NVIDIA's public figures. The versions are needed because XLA keeps loops out of
# graphs for a driver or toolkit older than 12.3.
_H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100"
dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
gpu_device_info {
  name: "NVIDIA H100" device_vendor: "NVIDIA Corporation" cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 device_address_bits: 64
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536 shared_memory_per_core: 233472
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  memory_bandwidth: 3350000000000 device_memory_size: 85899345920 driver_version: "13.0.0"
  runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
"""
_THUNK = re.compile(r"(?P<indent> *)\d+: k(?P<kind>\w+)\s+\[[^]]*\] ?(?P<name>\S*)")
# These launch nothing themselves; what they contain is listed below them.
_CONTAINER = re.compile("CommandBuffer|DynamicSliceFusion|Conditional|Sequential|While|Async")
_COPY = re.compile("Copy|Memcpy|Memzero|Memset")
_PRODUCT = re.compile("Cublas|Gemm|gemm_fusion")


@dataclass(frozen=True)
class Options(Programs):
    """Compile our layers and training steps for an H100 and count the launches of their loops."""

    #: products as XLA's own kernels or as cuBLAS calls; on a card XLA tries both.
    products: Literal["xla", "cublas"] = "xla"


def compile_for_h100(program: Program, device: Any, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Compile a program; also returns the text that lists its launches."""
    with tempfile.TemporaryDirectory(prefix="launches-") as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = program.compiled(device, {**options, **dump})
        files = Path(folder).rglob("*.thunk_sequence_after_thunk_passes.txt")  # none without loops
        return compiled, "".join(file.read_text(encoding="utf-8") for file in files)


def loops_of(program: Program, compiled: Any, thunks: str) -> Iterator[Row]:
    bodies = _bodies(thunks.splitlines())
    for (loop, row), (body, in_one_graph) in zip(loops_in(program, compiled), bodies, strict=True):
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
        if row and trips:
            unroll = program.times // int(trips[1])
            counts = {each: body[each] / unroll for each in ("kernels", "products", "copies")}
            found = {"launches": sum(counts.values()), **counts, "unroll": unroll}
            yield row | found | {"in_one_graph": in_one_graph}


def _bodies(lines: Sequence[str]) -> Iterator[tuple[Counter[str], bool]]:
    """For each outermost loop: counts of what its body launches, and whether it is in a graph."""
    around: list[tuple[int, str]] = []
    body: Counter[str] = Counter()
    depth, in_condition, in_one_graph = -1, False, False
    for line in [*lines, "0: kEnd []"]:
        thunk = _THUNK.match(line)
        if thunk is None:
            in_condition = (in_condition or "condition:" in line) and "body:" not in line
            continue
        indent, kind = len(thunk["indent"]), thunk["kind"]
        around = [each for each in around if each[0] < indent]
        if depth >= 0 and indent <= depth:
            yield body, in_one_graph
            depth, in_condition, body = -1, False, Counter()
        if depth < 0 and kind == "While":
            depth, in_one_graph = indent, "CommandBuffer" in [each for _, each in around]
        elif depth >= 0 and not in_condition and not _CONTAINER.match(kind):
            is_product = _PRODUCT.match(kind) or _PRODUCT.match(thunk["name"])
            body["copies" if _COPY.match(kind) else "products" if is_product else "kernels"] += 1
        around.append((indent, kind))


def main(options: Options) -> int:
    compiler = {**GRAPH, "xla_gpu_enable_triton_gemm": options.products == "xla"}
    device = described("a CUDA GPU", "cuda", "", "cuda", target_config=_H100, topology="1x1x1")
    print("compiled for an H100 and not run: launches per time step, of each loop over time")
    rows = (
        row
        for program in options.all()
        for row in loops_of(program, *compile_for_h100(program, device, compiler))
    )
    options.write("launches", rows)
    return 0
