"""Laws of the checkpoint store: what is read back is what was saved, or a clear error."""

import asyncio
import gc
import logging
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_cases import files_of_at_most
from tasks import Weights, bits, fill, make_state, names

from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.leftovers import wait_for_orbax

PROGRESS = {"loss": 0.1 + 0.2, "tiny": 5e-324, "name": "ж", "list": [1, [2.5]], "no": None}
ONE = np.ones(1)


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    state = make_state()
    store = CheckpointStore(tmp_path)
    store.save(0, state, PROGRESS)
    saved = store.restore(jax.eval_shape(make_state))
    assert jax.tree.structure(saved.state) == jax.tree.structure(state)
    assert bits(saved.state) == bits(state)
    assert (saved.step, saved.progress) == (0, PROGRESS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(saved.state))
    assert jnp.array_equal(jax.random.uniform(saved.state.key), jax.random.uniform(state.key))


@pytest.mark.filterwarnings("ignore:Sharding info")
def test_orbax_reads_it_by_itself(tmp_path: Path) -> None:
    state = make_state()
    CheckpointStore(tmp_path).save(3, state, PROGRESS)
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.latest_step() == 3
        found = manager.restore(3, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))
    assert jnp.array_equal(found["state"]["params/cell/w"], state.params["cell"].w)


def test_every_bit_pattern_of_each_dtype_survives(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 8, 16), np.uint8)
    dtypes = ["int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32", "complex64"]
    values = {name: raw.view(jnp.dtype(name)) for name in dtypes} | {"bool": raw > 127}
    values |= {f"scalar {name}": value[0, 0, :1].reshape(()) for name, value in values.items()}
    store = CheckpointStore(tmp_path)
    store.save(1, values, {})
    state = store.restore(values).state
    store.save(2, state, {})  # from JAX arrays too
    assert bits(store.restore(values).state) == bits(state) == bits(values)


def test_float64_survives_or_is_refused_but_never_cut(tmp_path: Path) -> None:
    template = {"x": jax.ShapeDtypeStruct((2,), np.float64)}
    store = CheckpointStore(tmp_path)
    store.save(1, {"x": np.array([math.pi, 1e300])}, {})
    with jax.enable_x64(True):
        assert np.asarray(store.restore(template).state["x"]).tolist() == [math.pi, 1e300]
    with pytest.raises(CheckpointError, match=r"'x' is float64; set jax_enable_x64"):
        store.restore(template)


@pytest.mark.parametrize(("impl", "other"), [("threefry2x32", "rbg"), ("rbg", "threefry2x32")])
def test_keys_keep_their_implementation(tmp_path: Path, impl: str, other: str) -> None:
    key = jax.random.split(jax.random.key(3, impl=impl), 2)
    store = CheckpointStore(tmp_path)
    store.save(1, {"key": key}, {})
    assert bits(store.restore({"key": key}).state["key"]) == bits(key)
    template = {"key": jax.random.split(jax.random.key(3, impl=other), 2)}
    assert bits(store.restore(template).state["key"]) == bits(key)
    for wrong in (template["key"][0], jnp.zeros(2)):
        with pytest.raises(CheckpointError, match=r"'key' is key<"):
            store.restore({"key": wrong})


def test_latest_and_best_kept_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    losses = {0: 0.5, 1: math.nan, 2: 1.0, 3: None, 4: 0.5}
    store = CheckpointStore(tmp_path, keep_latest=2)
    for step, loss in losses.items():
        store.save(step, {"x": np.float32(step)}, {}, heldout_loss=loss)
    assert (store.steps(), store.best_step()) == ([0, 3, 4], 0)
    store = CheckpointStore(tmp_path, keep_latest=1)  # the losses are read back from disk
    store.save(6, {"x": np.float32(6)}, {}, heldout_loss=3.0)
    assert store.steps() == [0, 6]
    store.save(7, {"x": np.float32(6)}, {}, heldout_loss=0.1)
    assert names(tmp_path) == ["7"]
    fill(tmp_path, 3, keep_latest=1)  # the one saved last, if not the highest
    assert names(tmp_path) == ["3", "7"]
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("absl").filters


def test_a_step_saved_again_is_replaced(run: Path) -> None:
    store = CheckpointStore(os.path.relpath(run))
    store.save(2, make_state(20), {"step": 20})
    saved = store.restore(make_state())
    assert (saved.step, saved.progress) == (2, {"step": 20})
    assert bits(saved.state) == bits(make_state(20))
    assert names(run) == ["1", "2"]


def test_params_load_alone_as_any_container(run: Path) -> None:
    template = {"cell": {"w": jnp.zeros((4, 5))}, "out": make_state().params["out"]}
    saved = CheckpointStore(run, read_only=True).restore(template, of="params")
    assert bits(saved.state) == bits(make_state(2).params)


def test_the_number_of_devices_may_change(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
    values, key = jnp.arange(8.0), jax.random.key(1)
    state = {"params": jax.device_put(values, spread), "key": jax.device_put(key, whole)}
    store = CheckpointStore(tmp_path)
    store.save(1, state, {})
    same = store.restore(state).state
    assert same["params"].sharding == spread
    assert same["key"].sharding == whole
    assert bits(same) == bits(state)
    single = {"params": values, "key": jax.random.key(0)}
    alone = store.restore(single).state
    assert alone["params"].devices() == values.devices()
    assert not alone["params"].committed
    assert bits(alone) == bits(state)
    assert bits(store.restore(state["params"], of="params").state) == bits(values)
    store.save(2, single, {})
    assert store.restore(state).state["params"].sharding == spread


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": jnp.ones(2)}, r"'params/new' is not in the checkpoint"),
        ({"new": 1.5}, r"'params/new' is 1.5; make it an array"),
        ({"cell": Weights(jnp.ones((4, 6)), None)}, r"float32\[4, 5\] in the ch.* float32\[4, 6\]"),
        ({"cell": Weights(jnp.ones((4, 5), int), None)}, r"'params/cell/w' is float32"),
        ({"cell": Weights(jnp.ones((4, 5)), jnp.ones(2))}, r"'params/cell/b' is not in the ch"),
        ({"out": []}, r"'params/out/0' is not in the template"),
    ],
)
def test_another_template_is_refused_by_leaf(run: Path, change: Any, message: str) -> None:
    params = make_state().params | change
    store = CheckpointStore(run, read_only=True)
    with pytest.raises(CheckpointError, match=message):
        store.restore(make_state().replace(params=params))
    with pytest.raises(CheckpointError, match=message):
        store.restore(params, of="params")


def test_what_is_not_there_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*run; there are 1, 2"):
        CheckpointStore(run, read_only=True).restore(make_state(), step=7)
    for empty in (tmp_path / "nothing", tmp_path):
        store = CheckpointStore(empty, read_only=True)
        assert (store.steps(), store.best_step()) == ([], None)
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            store.restore(make_state())
        with pytest.raises(CheckpointError, match="read_only"):
            store.save(3, make_state(), {})
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(CheckpointError, match="keep_latest is 0"):
        CheckpointStore(tmp_path, keep_latest=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": {"a": [3]}}, r"leaf 'a/0' is 3; make"),
        ({"state": {"a/b": ONE, "a": {"b": ONE}}}, "'a/b' is taken or has an empty"),
        ({"state": {"a": {"": ONE}}}, "has an empty part"),
        ({"state": {}}, "holds no values"),
        ({"state": {"a": np.array(["text"])}}, r"leaf 'a' is .*; make it a JAX array"),
        ({"state": {"a": np.array([None])}}, r"leaf 'a' is .*; make it a JAX array"),
        ({"state": {"a": np.ones(2, ">f4")}}, r"leaf 'a' is .*; make it a JAX array"),
        ({"progress": {"x": np.ones(2)}}, "progress is not JSON"),
        ({"step": -1}, "step is -1"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, given: Any, message: str) -> None:
    good = {"step": 1, "state": {"a": ONE}, "progress": {}}
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(tmp_path).save(**good | given)
    assert names(tmp_path) == []


def test_empty_numbered_folders_do_not_count(run: Path) -> None:
    (run / "99").mkdir()
    (run / "notes").mkdir()
    store = CheckpointStore(run)
    assert store.steps() == [1, 2]
    assert store.restore(make_state()).step == 2
    store.save(99, make_state(99), {})
    assert store.steps() == [1, 2, 99]
    assert names(run) == ["1", "2", "99", "notes"]


PATTERNS = ["a[b]", "[2026]", "p[x", "a*", "b?c"]


@pytest.mark.parametrize("name", [*PATTERNS, "x]y", "{b}", "~", "%5B", "a b", "#"])
def test_odd_names_work_or_are_refused_as_orbax_s_patterns(tmp_path: Path, name: str) -> None:
    """It would look for what to write elsewhere, and say nothing."""
    if name in PATTERNS:
        with pytest.raises(CheckpointError, match="Orbax would write to other folders"):
            CheckpointStore(tmp_path / name / "checkpoints")
        assert names(tmp_path) == []
        fill(tmp_path / "run", 1)
        (tmp_path / "run").rename(tmp_path / name)
    else:
        fill(tmp_path / name, 1)
    assert CheckpointStore(tmp_path / name, read_only=True).restore(make_state()).step == 1


# Damage, no space, saves that were cut short: the older ones hold


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_each_flipped_bit_of_a_record_is_noticed(run: Path, name: str) -> None:
    """Or does no harm: one of the two good steps is restored."""
    path = run / "2" / name
    whole = path.read_bytes()
    store = CheckpointStore(run, read_only=True)
    for place in range(0, len(whole) * 8, 97):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        saved = store.restore(make_state().params, of="params")
        assert saved.progress == {"step": saved.step}
        assert bits(saved.state) == bits(make_state(saved.step).params)


def test_nothing_but_damage_is_an_error(run: Path) -> None:
    for step in "12":
        os.truncate(run / step / "_CHECKPOINT_METADATA", 99)
    store = CheckpointStore(run)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        store.restore(make_state())
    store.save(2, make_state(2), {})  # a damaged step can be written anew
    assert store.restore(make_state()).step == 2


@pytest.mark.parametrize("step", [2, 3])  # one to replace, and a new one
@pytest.mark.parametrize("size", [0, 1 << 16])
def test_a_save_that_finds_no_space_is_one_line_and_harms_nothing(
    run: Path, caplog: Any, capfd: pytest.CaptureFixture[str], step: int, size: int
) -> None:
    """However many of 20 arrays fail; nothing of it is printed, not later either."""
    noise = np.random.default_rng(0).random((20, 1 << 16), np.float32)
    lengths = np.linspace(1 << 10, 1 << 16, 20).astype(int)
    state = {f"x{place}": jnp.asarray(noise[place, :n]) for place, n in enumerate(lengths)}
    store = CheckpointStore(run)
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


def test_a_thread_that_ends_meanwhile_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
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
    with pytest.raises(CheckpointError, match="cannot list"):
        CheckpointStore(tmp_path / "file", read_only=True).restore(make_state())


def test_what_interrupted_saves_left_is_ignored_and_goes_with_the_next(run: Path) -> None:
    shutil.copytree(run / "2", run / "3.orbax-checkpoint-tmp")
    shutil.copytree(run / "2", run / "4.orbax-checkpoint-tmp-deleted")
    shutil.copytree(run / "1", run / "1.replaced")  # its successor was written
    (run / "2").rename(run / "2.replaced")  # its successor was not
    before = names(run)
    assert CheckpointStore(run, read_only=True).steps() == [1]
    assert names(run) == before
    store = CheckpointStore(run)
    assert store.restore(make_state()).step == 2
    store.save(5, make_state(), {})
    assert names(run) == ["1", "2", "5"]
