"""What other libraries compute, recorded, so that comparing with them needs none of them.

    python -m pytest --record tests/core tests/interop

makes the files again, with the versions that are installed, and writes down which these are.
"""

import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
# As near as the installed library must come to what was recorded, relative to the largest entry:
# another processor or version may sum in another order.
TOLERANCE = {4: 1e-5, 8: 1e-12}


class Recording:
    """One file: the versions of the libraries, and of every case its arrays by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions: dict[str, str] = {}
        self.cases: dict[str, Arrays] = {}
        if not path.exists():
            return
        with np.load(path) as file:
            index, data = json.loads(file["index"].tobytes()), file["data"].tobytes()
        self.versions = index["versions"]
        for case, arrays in index["cases"].items():
            self.cases[case] = {
                name: np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
                for name, (dtype, shape, start) in arrays.items()
            }

    def write(self) -> None:
        cases: dict[str, dict[str, Any]] = {}
        data = b""
        for case, arrays in sorted(self.cases.items()):
            cases[case] = {}
            for name, array in arrays.items():
                cases[case][name] = (array.dtype.str, array.shape, len(data))
                data += array.tobytes()
        index = json.dumps({"versions": self.versions, "cases": cases}).encode()
        self.path.parent.mkdir(exist_ok=True)
        both = {"index": np.frombuffer(index, np.uint8), "data": np.frombuffer(data, np.uint8)}
        np.savez_compressed(self.path, **both)


def of_kind(found: Arrays, kind: str) -> Arrays:
    """The arrays of a kind, by what follows it in their names."""
    return {n.removeprefix(f"{kind} "): a for n, a in found.items() if n.startswith(f"{kind} ")}


class Peer:
    """Other libraries' results of one test, by case.

    Recorded ones are read. Live ones are computed, and must be those that were recorded; on
    recording they become the recorded ones.
    """

    def __init__(self, recording: Recording, test: str, libraries: tuple[str, ...], how: str):
        self._recording, self._test, self._libraries = recording, test, libraries
        self.is_live = how != "recorded"
        self._records = how == "recording"

    def __call__(self, case: str, compute: Callable[[], Arrays]) -> Arrays:
        case = f"{self._test} {case}"
        recorded = self._recording.cases
        if not self.is_live:
            assert case in recorded, f"{self._recording.path.name} lacks {case}"
            return recorded[case]
        computed = {name: np.asarray(array) for name, array in compute().items()}
        if self._records:
            recorded[case] = computed
            self._recording.versions |= {name: version(name) for name in self._libraries}
        assert list(computed) == list(recorded[case])
        for name, array in computed.items():
            expected = recorded[case][name]
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
            tolerance = TOLERANCE.get(array.itemsize, 0) if array.dtype.kind == "f" else 0
            off = tolerance * np.abs(expected).max(initial=0)
            np.testing.assert_allclose(array, expected, 0, off, err_msg=f"{case}: {name}")
        return computed
