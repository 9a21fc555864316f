"""The law of hostile inputs: refused by one line of the project's own, or accepted and right.

Nothing else: no other exception, no codec's own words, no hang, no memory out of proportion, no
file lost, changed or left behind.
"""

import contextlib
import io
import resource
import shutil
import signal
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

from hypothesis import settings
from run_cases import limited

from lstm_jax.files import one_line

SECONDS = 10.0
MEBIBYTES = 300
_LIMIT = 4 << 30

many = settings(max_examples=4 * settings().max_examples)
"""For readers, each of whose cases takes a millisecond or two."""

few = settings(max_examples=max(6, settings().max_examples // 20))
"""For commands, each of whose cases is a process."""


class _TooLongError(BaseException):
    """Not an Exception: nobody in between is to take it for an error of the input."""


class Law:
    """Holds what reads what a user gives to the law, and counts how often it refused and accepted.

    Args:
        place: an empty folder.
        row: of the table: a name and three numbers, which cases are added to.

    Attributes:
        refusal: of the last case.
    """

    def __init__(self, place: Path, row: list[str | int]) -> None:
        self.place, self.row = place, row
        self.refusal: Exception | None = None

    def count(self, *, refused: bool) -> None:
        """Adds a case to the table."""
        for place in (1, 2 if refused else 3):
            self.row[place] = int(self.row[place]) + 1

    @contextlib.contextmanager
    def case(
        self, files: Mapping[str, bytes] | None = None, writes: str | None = None
    ) -> Iterator[Path]:
        """Gives a folder with these files, in which the body reads and asserts.

        Args:
            files: what the folder holds; not looked at again where None.
            writes: the file that the body may make or change, if it is not refused.
        """
        folder = self.place / "case"
        folder.mkdir()
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        self.refusal = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the largest size is that from now on
        largest = _largest_mebibytes()
        try:
            quiet = contextlib.redirect_stdout(io.StringIO())
            memory = limited(resource.RLIMIT_AS, _address_space() + _LIMIT)
            with memory, _alarm(), quiet, contextlib.redirect_stderr(io.StringIO()):
                yield folder
        except (ValueError, OSError) as error:
            self.refusal = error
        except (MemoryError, _TooLongError) as error:
            raise AssertionError(f"out of all proportion: {error!r}") from error
        finally:
            left = {each.name: each for each in folder.iterdir()}
            found = {name: each.read_bytes() for name, each in left.items() if each.is_file()}
            shutil.rmtree(folder)
        assert _largest_mebibytes() - largest < MEBIBYTES, "memory out of all proportion"
        if self.refusal is not None:
            assert one_line(self.refusal), "refused without a word"
            assert not isinstance(self.refusal, UnicodeError), "a codec's own words"
        if files is not None:
            if writes is not None and self.refusal is None:
                files = {**files, writes: found.get(writes)}  # type: ignore[dict-item]
            assert left.keys() == files.keys(), "a file was left behind, or lost"
            assert found == files, "a file was changed"
        self.count(refused=self.refusal is not None)


def _largest_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _address_space() -> int:
    """Of this process; with little more allowed, a bomb ends as a MemoryError."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: types.FrameType | None) -> None:
        raise _TooLongError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
