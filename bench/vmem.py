"""VMEM use on a TPU: our layers and steps compiled for one, without having one.

XLA compiles for a described chip, and nothing runs. For each loop over time the table shows how
much of the recurrent weights and the carry, which every step needs, is kept in VMEM: if all is in
the chip's own memory, a step reads only its gates from HBM. It also shows how much of the arrays
over time (`timed`), of which a step reads and writes one entry, fits in VMEM.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

from bench.programs import Program, Programs, Row, described, loops_in
from lstm_jax.precision import ComputeDtype

_ARRAY = re.compile(r"(?P<dtype>bf16|f32)\[(?P<sizes>[\d,]+)\]\{(?P<layout>[^}]*)\}")
# Otherwise libtpu queries the network for its chips, and serves one process at a time.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_BYTES = {"bf16": 2, "f32": 4}
_SIZES = ("kept_mb", "kept_in_vmem_mb", "timed_mb", "timed_in_vmem_mb")


@dataclass(frozen=True)
class Options(Programs):
    """Compile our layers and training steps for TPUs and read what their loops keep in VMEM."""

    dtypes: tuple[ComputeDtype, ...] = ("float32", "bfloat16")  # dtypes of the products.
    chips: tuple[Literal["v5e", "v6e"], ...] = ("v5e", "v6e")  # chips to compile for.


def loops_of(program: Program, compiled: Any) -> Iterator[Row]:
    for loop, row in loops_in(program, compiled):
        if row:
            yield row | _sizes(loop.partition(" while(")[0])


def _sizes(state: str) -> dict[str, float]:
    """MB in a loop's state without and with a time axis, each in total and in VMEM."""
    found = dict.fromkeys(_SIZES, 0.0)
    for array in _ARRAY.finditer(state):
        sizes = [int(size) for size in array["sizes"].split(",")]
        size_mb = math.prod(sizes) * _BYTES[array["dtype"]] / 1e6
        kind = "kept" if len(sizes) < 3 else "timed"
        found[f"{kind}_mb"] += size_mb
        found[f"{kind}_in_vmem_mb"] += size_mb * ("S(1)" in array["layout"])
    return found


def main(options: Options) -> int:
    print("compiled for TPUs and not run: what each loop over time keeps in VMEM")
    with patch.dict(os.environ, _ENVIRONMENT):
        rows = (
            {"chip": chip} | row
            for chip in options.chips
            for device in [described("a TPU", "tpu", f"{chip}:2x2", "tpu")]
            for program in options.all()
            for row in loops_of(program, program.compiled(device, {}))
        )
        options.write("vmem", rows)
    return 0
