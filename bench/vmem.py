"""VMEM use on a TPU: our layers and steps compiled for one, without having one.

XLA compiles for a described chip, and nothing runs. For each loop over time the table shows where
the recurrent weights and the carry are kept, which every step needs: if they are in VMEM, the
chip's own memory, a step reads only its gates from HBM. It also shows how much of the arrays over
time, of which a step reads and writes one entry, fits in VMEM.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

from bench.programs import Program, Programs, described, layer_of, loops_in
from bench.report import writing
from lstm_jax.cli.arguments import parse

_ARRAY = re.compile(r"(?P<dtype>bf16|f32)\[(?P<sizes>[\d,]+)\]\{(?P<layout>[^}]*)\}")
# Otherwise libtpu queries the network for its chips, and serves one process at a time.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_BYTES = {"bf16": 2, "f32": 4}


class Loop(NamedTuple):
    """Memory of one loop over time, in MB.

    Attributes:
        program: the compiled program, with products of this dtype; it takes `temporary_mb`.
        layer: its name and number.
        direction: forward or backward pass.
        kept_mb: weights, bias and carry, which every step needs; `kept_in_vmem_mb` of it in VMEM.
        timed_mb: arrays over time; `timed_in_vmem_mb` of it in VMEM.
    """

    chip: str
    program: str
    dtype: str
    layer: str
    direction: str
    kept_mb: float
    kept_in_vmem_mb: float
    timed_mb: float
    timed_in_vmem_mb: float
    temporary_mb: float

    def __str__(self) -> str:
        return (
            f"{self.chip:4}  {self.program:35}  {self.dtype:8}  {self.layer:6}  "
            f"{self.direction:8}  in VMEM: {self.kept_in_vmem_mb:6.3f} of {self.kept_mb:6.3f} MB "
            f"that stay, {self.timed_in_vmem_mb:5.1f} of {self.timed_mb:5.1f} MB of all times; "
            f"{self.temporary_mb:,.0f} MB in all"
        )


@dataclass(frozen=True)
class Options(Programs):
    """Compile our layers and training steps for TPUs and read what their loops keep in VMEM.

    Attributes:
        chips: chips to compile for.
    """

    chips: tuple[Literal["v5e", "v6e"], ...] = ("v5e", "v6e")


def loops_of(chip: str, program: Program, compiled: Any) -> Iterator[Loop]:
    """Yield the loops of a program that run a layer over time."""
    memory_mb = compiled.memory_analysis().temp_size_in_bytes / 1e6
    for line in loops_in(compiled.as_text()):
        if found := layer_of(line):
            where = (chip, program.name, program.dtype, *found)
            yield Loop(*where, *_sizes(line.partition(" while(")[0]), memory_mb)


def _sizes(state: str) -> tuple[float, float, float, float]:
    """MB in a loop's state without and with a time axis, each in total and in VMEM."""
    kept, kept_in_vmem, timed, timed_in_vmem = 0.0, 0.0, 0.0, 0.0
    for array in _ARRAY.finditer(state):
        sizes = [int(size) for size in array["sizes"].split(",")]
        size_mb = math.prod(sizes) * _BYTES[array["dtype"]] / 1e6
        in_vmem_mb = size_mb if "S(1)" in array["layout"] else 0
        if len(sizes) < 3:
            kept, kept_in_vmem = kept + size_mb, kept_in_vmem + in_vmem_mb
        else:
            timed, timed_in_vmem = timed + size_mb, timed_in_vmem + in_vmem_mb
    return kept, kept_in_vmem, timed, timed_in_vmem


def main(arguments: Sequence[str]) -> int:
    default = Options(dtypes=("float32", "bfloat16"))
    options = parse(Options, default, arguments, "bench vmem")
    print("compiled for TPUs and not run: what each loop over time keeps in VMEM")
    with writing(options.json) as write, patch.dict(os.environ, _ENVIRONMENT):
        for chip in options.chips:
            device = described("a TPU", "tpu", f"{chip}:2x2", "tpu")
            for program in options.all():
                for loop in loops_of(chip, program, program.compiled(device, {})):
                    print(loop, flush=True)
                    write({"bench": "vmem", **loop._asdict()})
    return 0
