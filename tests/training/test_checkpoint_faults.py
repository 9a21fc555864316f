"""Checkpoints that are damaged, find no space or were cut short: the older ones hold."""

import asyncio
import gc
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from runs import files_of_at_most
from states import bits, make_state, names

from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.leftovers import wait_for_orbax


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
        os.truncate(run / step / "_CHECKPOINT_METADATA", 99)
    with CheckpointStore(run) as store:
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
            store.restore(make_state())
        store.save(2, make_state(2), {})  # a damaged step can be written anew
        assert store.restore(make_state()).step == 2


@pytest.mark.parametrize("step", [2, 3])  # one to replace, and a new one
@pytest.mark.parametrize(
    "size", [0, 1 << 16, *(pytest.param(1 << n, marks=pytest.mark.slow) for n in (10, 18))]
)
def test_a_save_that_finds_no_space_is_one_line_and_harms_nothing(
    run: Path, caplog: Any, capfd: pytest.CaptureFixture[str], step: int, size: int
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
