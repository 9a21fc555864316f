"""Checkpoints that are damaged, find no space or are killed: the older ones hold."""

import asyncio
import contextlib
import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from states import bits, make_state, names
from tasks import files_of_at_most

from lstm_jax.training import checkpoint
from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.leftovers import wait_for_orbax


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "flipped": flip,
    "garbled": lambda path: path.write_bytes(b"\xff\x00" * path.stat().st_size),
}


@pytest.mark.parametrize(
    "how",
    [how if how != "garbled" else pytest.param(how, marks=pytest.mark.slow) for how in DAMAGE],
)
def test_no_damaged_file_gives_wrong_values(
    run: Path, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file of the newest step in turn: its own values, or the older step's and a note."""
    kept, fallen_back = tmp_path / "kept", 0
    shutil.copytree(run / "2", kept)
    for file in [path.relative_to(kept) for path in kept.rglob("*") if path.is_file()]:
        shutil.rmtree(run / "2")
        shutil.copytree(kept, run / "2")
        DAMAGE[how](run / "2" / file)
        caplog.clear()
        with CheckpointStore(run, read_only=True) as store:
            saved = store.restore(make_state())
            assert bits(saved.state) == bits(make_state(saved.step)), file
            assert saved.progress == {"step": saved.step}
            assert [r.name for r in caplog.records] == [checkpoint.__name__] * (saved.step == 1), (
                file
            )
            fallen_back += saved.step == 1
            if saved.step == 1:
                with pytest.raises(CheckpointError, match="2 is damaged") as error:
                    store.restore(make_state(), step=2)
                assert "\n" not in str(error.value)
                assert error.value.__suppress_context__
    assert fallen_back >= 3  # at the very least the record, the manifest and the values


def test_each_flipped_bit_of_the_record_is_noticed(run: Path) -> None:
    path = run / "2" / "_CHECKPOINT_METADATA"
    whole = path.read_bytes()
    with CheckpointStore(run, read_only=True) as store:
        for place in range(0, len(whole) * 8, 97):
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(data)
            saved = store.restore_params(make_state().params)
            assert saved.progress == {"step": saved.step}
            assert bits(saved.state) == bits(make_state(saved.step).params)


def test_nothing_but_damage_is_an_error(run: Path) -> None:
    for step in "12":
        flip(run / step / "_CHECKPOINT_METADATA")
    with CheckpointStore(run) as store:
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
            store.restore(make_state())
        store.save(2, make_state(2), {})  # a damaged step can be written anew
        assert store.restore(make_state()).step == 2


@pytest.mark.parametrize(  # one to replace, and a new one; what fails: all, or a part
    ("step", "size"),
    [(2, 0), (3, 1 << 16)]
    + [
        pytest.param(step, size, marks=pytest.mark.slow)
        for step, size in itertools.product((2, 3), (0, 1 << 10, 1 << 16, 1 << 18))
        if (step, size) not in ((2, 0), (3, 1 << 16))
    ],
)
def test_a_save_that_finds_no_space_is_one_line_and_harms_nothing(
    run: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    step: int,
    size: int,
) -> None:
    """However many of 20 arrays fail; nothing of it is printed, not later either."""
    noise = np.random.default_rng(0).random((20, 1 << 16), np.float32)
    lengths = np.linspace(1 << 10, 1 << 16, 20).astype(int)
    state = {f"x{place}": jnp.asarray(noise[place, :n]) for place, n in enumerate(lengths)}
    with CheckpointStore(run) as store:
        with (
            files_of_at_most(size),
            pytest.raises(CheckpointError, match=f"step {step} was not saved") as error,
        ):
            store.save(step, state, {})
        assert "\n" not in str(error.value)
        assert error.value.__suppress_context__
        assert store.steps() == [1, 2]
        assert bits(store.restore(make_state()).state) == bits(make_state(2))
        store.save(3, state, {})
        assert bits(store.restore(state).state) == bits(state)
    assert names(run) == ["1", "2", "3"]
    del error
    gc.collect()
    assert (caplog.records, *capfd.readouterr()) == ([], "", "")


def test_a_thread_that_ends_while_it_is_waited_for_keeps_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it was about to print goes while Orbax is still kept quiet."""

    class Failing(threading.Thread):
        __module__ = "orbax.commit"

        def run(self) -> None:
            time.sleep(0.1)
            self.cycle = self
            loop = asyncio.new_event_loop()
            self.future = loop.create_future()
            self.future.set_exception(OSError("no space"))
            loop.close()

    Failing().start()
    wait_for_orbax()
    assert [record.name for record in caplog.records] == ["asyncio"]


def test_a_file_in_place_of_the_folder_surfaces(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file"):
        CheckpointStore(tmp_path / "file")
    reading = CheckpointStore(tmp_path / "file", read_only=True)
    with pytest.raises(CheckpointError, match="cannot list"):
        reading.restore(make_state())
    with CheckpointStore(tmp_path / "run") as store:
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("")
        with pytest.raises(CheckpointError, match="step 1 was not saved"):
            store.save(1, make_state(), {})
        (tmp_path / "run").unlink()
        store.save(1, make_state(), {})
        assert store.steps() == [1]


def test_what_interrupted_saves_left_is_ignored_and_goes_with_the_next(run: Path) -> None:
    shutil.copytree(run / "2", run / "3.orbax-checkpoint-tmp")
    shutil.copytree(run / "2", run / "4.orbax-checkpoint-tmp-deleted")
    shutil.copytree(run / "1", run / "1.replaced")  # its successor was written
    (run / "2").rename(run / "2.replaced")  # its successor was not
    before = names(run)
    with CheckpointStore(run, read_only=True) as store:
        assert store.steps() == [1]
    assert names(run) == before
    with CheckpointStore(run) as store:
        assert store.restore(make_state()).step == 2
        store.save(5, make_state(), {})
    assert names(run) == ["1", "2", "5"]


KILLED = """
import sys, numpy as np
from lstm_jax.training.checkpoint import CheckpointStore
with CheckpointStore(sys.argv[1], keep_latest=2) as store:
    for step in range(100000):
        state = {"x": np.full((1 << 18,), step, np.float32), "y": np.float32(step)}
        store.save(step % 7 if step > 10 else step, state, {"value": step})
        print(step, flush=True)
"""


def test_a_kill_takes_the_save_that_it_falls_into_and_no_other(tmp_path: Path) -> None:
    """What is there is whole, but for a step that was being deleted, which is refused."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    template = {"x": np.zeros((1 << 18,), np.float32), "y": np.float32(0)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        for _ in range(15):
            writer.stdout.readline()
        time.sleep(0.2 * np.random.default_rng(os.getpid()).random())
        writer.send_signal(signal.SIGKILL)
        told = 14 + len(writer.stdout.read().splitlines())
    values = []
    with CheckpointStore(tmp_path) as store:
        steps = store.steps()
        for step in steps:
            with contextlib.suppress(CheckpointError):
                saved = store.restore(template, step=step)
                assert (np.asarray(saved.state["x"]) == saved.progress["value"]).all()
                values.append(saved.progress["value"])
        assert len(values) >= len(steps) - 1
        assert {told, told + 1} & {*values}
        store.save(50, template, {})
        assert store.latest_step() == 50
    assert all(name.isdecimal() for name in names(tmp_path))
