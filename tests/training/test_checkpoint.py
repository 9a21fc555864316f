"""Laws of the checkpoint store: what is read back is what was saved, or a clear error."""

import gc
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import checkpoint
from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore

PROGRESS = {
    "epoch": 3,
    "loss": 0.1 + 0.2,
    "tiny": 5e-324,
    "name": "ж",
    "list": [1, [2.5]],
    "no": None,
}


class Weights(NamedTuple):
    w: jax.Array
    b: jax.Array | None


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_state(seed: int = 0, width: int = 5) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(keys[0], (4, width))
    params = {"cell": Weights(w, None), "out": [w.astype(jnp.bfloat16), w.astype(jnp.float16)]}
    moments = (w * 2, {"nu": w**2, "empty": jnp.zeros((0, 3)), "mask": w > 0})
    return State(jnp.int32(seed), params, (moments, jnp.uint32(7)), keys[1])


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Every leaf as its dtype, shape and bytes: equal only if equal bit for bit."""
    found = []
    for leaf in jax.tree.leaves(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found.append((str(leaf.dtype), leaf.shape, raw.tobytes()))
    return found


def fill(directory: Path, *steps: int, **options: Any) -> None:
    with CheckpointStore(directory, **options) as store:
        for step in steps:
            store.save(step, make_state(step), {"step": step})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the steps 1 and 2."""
    fill(tmp_path / "run", 1, 2)
    return tmp_path / "run"


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    state = make_state()
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, PROGRESS)
        saved = store.restore(jax.eval_shape(make_state))
    assert jax.tree.structure(saved.state) == jax.tree.structure(state)
    assert bits(saved.state) == bits(state)
    assert (saved.step, saved.progress) == (0, PROGRESS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(saved.state))
    assert jnp.array_equal(jax.random.uniform(saved.state.key), jax.random.uniform(state.key))


def test_a_folder_may_be_named_by_way_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    state = make_state()
    for directory in ("../there/run", tmp_path / "there" / "run", "../here/../there/run"):
        with CheckpointStore(directory) as store:
            if store.is_empty:
                store.save(1, state, {})
            assert bits(store.restore(state).state) == bits(state)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32", "complex64"],
)
def test_every_bit_pattern_of_a_dtype_survives(tmp_path: Path, dtype: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 8, 16), np.uint8)
    value = raw > 127 if dtype == "bool" else raw.view(jnp.dtype(dtype))
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"x": value, "scalar": value[0, 0, :1].reshape(())}, {})
        state = store.restore({"x": value, "scalar": value[0, 0, 0]}).state
    assert bits(state["x"]) == bits(value)
    assert state["scalar"].shape == ()


def test_float64_survives_or_is_refused_but_never_cut(tmp_path: Path) -> None:
    template = {"x": jax.ShapeDtypeStruct((2,), np.float64)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"x": np.array([math.pi, 1e300])}, {})
        with jax.enable_x64(True):
            assert np.asarray(store.restore(template).state["x"]).tolist() == [math.pi, 1e300]
        with pytest.raises(CheckpointError, match=r"'x' is float64; set jax_enable_x64"):
            store.restore(template)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_keep_their_implementation(tmp_path: Path, impl: str) -> None:
    key = jax.random.split(jax.random.key(3, impl=impl), 2)
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"key": key}, {})
        assert bits(store.restore({"key": key}).state["key"]) == bits(key)
        other = {"threefry2x32": "rbg", "rbg": "threefry2x32"}[impl]
        template = {"key": jax.random.split(jax.random.key(3, impl=other), 2)}
        assert bits(store.restore(template).state["key"]) == bits(key)
        for wrong in (template["key"][0], jnp.zeros(2)):
            with pytest.raises(CheckpointError, match=r"'key' is key<"):
                store.restore({"key": wrong})


def test_the_state_may_be_donated_right_after_save(tmp_path: Path) -> None:
    trample = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with CheckpointStore(tmp_path, keep_latest=9) as store:
        for step in range(4):
            value = jnp.full((1 << 20,), step, jnp.float32)
            store.save(step, {"x": value}, progress := {"at": step})
            progress["at"] = -1
            for _ in range(3):
                value = trample(value)
            value.block_until_ready()
        for step in range(4):
            saved = store.restore({"x": value}, step=step)
            assert (np.asarray(saved.state["x"]) == step).all()
            assert saved.progress == {"at": step}


def test_keep_policy_is_the_latest_and_the_best(tmp_path: Path) -> None:
    losses = {0: 2.0, 1: 0.5, 2: math.nan, 3: 1.0, 4: None, 5: 0.5}
    with CheckpointStore(tmp_path, keep_latest=2) as store:
        for step, loss in losses.items():
            store.save(step, {"x": np.float32(step)}, {}, heldout_loss=loss)
        assert (store.steps(), store.latest_step(), store.best_step()) == ([1, 4, 5], 5, 1)
    with CheckpointStore(tmp_path, keep_latest=2) as store:  # the losses are read back from disk
        store.save(6, {"x": np.float32(6)}, {}, heldout_loss=3.0)
        assert store.steps() == [1, 5, 6]


def test_the_best_may_be_step_zero(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_latest=1) as store:
        for step in range(3):
            store.save(step, {"x": np.float32(0)}, {}, heldout_loss=1.0 + step)
        assert (store.steps(), store.best_step()) == ([0, 2], 0)


def test_a_step_saved_again_is_replaced(run: Path) -> None:
    with CheckpointStore(run) as store:
        store.save(2, make_state(20), {"step": 20})
        saved = store.restore(make_state())
    assert (saved.step, saved.progress, bits(saved.state)) == (
        2,
        {"step": 20},
        bits(make_state(20)),
    )
    assert names(run) == ["1", "2"]


def test_a_step_lower_than_the_latest_survives_its_own_save(run: Path) -> None:
    fill(run, 0, keep_latest=2)
    assert names(run) == ["0", "2"]


def test_params_load_alone_as_any_container(run: Path) -> None:
    template = {"cell": {"w": jnp.zeros((4, 5))}, "out": make_state().params["out"]}
    with CheckpointStore(run, read_only=True) as store:
        saved = store.restore_params(template)
    assert bits(saved.state) == bits(make_state(2).params)


def test_the_number_of_devices_may_change(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    values = jnp.arange(8.0)
    state = {
        "params": jax.device_put(values, spread),
        "key": jax.device_put(jax.random.key(1), whole),
    }
    with CheckpointStore(tmp_path) as store:
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
        assert bits(store.restore_params(state["params"]).state) == bits(values)
        store.save(2, single, {})
        assert store.restore(state).state["params"].sharding == spread


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"cell": p["cell"]}, r"'params/out/0' is not in the template"),
        (lambda p: p | {"new": jnp.ones(2)}, r"'params/new' is not in the checkpoint"),
        (
            lambda p: p | {"cell": Weights(jnp.ones((4, 6)), None)},
            r"float32\[4, 5\] in the checkpoint, float32\[4, 6\]",
        ),
        (
            lambda p: p | {"cell": Weights(jnp.ones((4, 5), jnp.int32), None)},
            r"'params/cell/w' is float32",
        ),
        (
            lambda p: p | {"cell": Weights(jnp.ones((4, 5)), jnp.ones(2))},
            r"'params/cell/b' is not in the ch",
        ),
        (lambda p: p | {"new": 1.5}, r"'params/new' is 1.5; make it an array"),
    ],
)
def test_another_template_is_refused_by_the_leafs_name(
    run: Path, change: Any, message: str
) -> None:
    state = make_state()
    with CheckpointStore(run, read_only=True) as store:
        with pytest.raises(CheckpointError, match=message):
            store.restore(state.replace(params=change(state.params)))
        with pytest.raises(CheckpointError, match=message):
            store.restore_params(change(state.params))


def test_what_is_not_there_is_named(tmp_path: Path, run: Path) -> None:
    with (
        CheckpointStore(run, read_only=True) as store,
        pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*run; there are 1, 2"),
    ):
        store.restore(make_state(), step=7)
    for empty in (tmp_path / "nothing", tmp_path):
        with CheckpointStore(empty, read_only=True) as store:
            assert (store.steps(), store.latest_step(), store.best_step()) == ([], None, None)
            with pytest.raises(CheckpointError, match="no checkpoint in"):
                store.restore(make_state())
    assert not (tmp_path / "nothing").exists()


def test_what_cannot_be_saved_is_refused_at_once(tmp_path: Path, run: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match=r"leaf 'a/0' is 3; make"):
            store.save(1, {"a": [3]}, {})
        with pytest.raises(CheckpointError, match="progress is not JSON"):
            store.save(1, {"a": np.ones(1)}, {"x": np.ones(2)})
        with pytest.raises(CheckpointError, match="'a/b' is taken or has an empty"):
            store.save(1, {"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {})
        with pytest.raises(CheckpointError, match="holds no values"):
            store.save(1, {}, {})
        for foreign in (np.array(["text"]), np.array([None]), np.ones(2, ">f4")):
            with pytest.raises(CheckpointError, match=r"leaf 'a' is .*; make it a JAX array"):
                store.save(1, {"a": foreign}, {})
        with pytest.raises(CheckpointError, match="has an empty part"):
            store.save(1, {"a": {"": np.ones(1)}}, {})
        with pytest.raises(CheckpointError, match="step is -1"):
            store.save(-1, make_state(), {})
        assert store.steps() == []
    with (
        CheckpointStore(run, read_only=True) as store,
        pytest.raises(CheckpointError, match="read_only"),
    ):
        store.save(3, make_state(), {})
    with pytest.raises(CheckpointError, match="keep_latest is 0"):
        CheckpointStore(tmp_path, keep_latest=0)


def test_empty_numbered_folders_do_not_count(run: Path) -> None:
    (run / "99").mkdir()
    (run / "notes").mkdir()
    with CheckpointStore(run) as store:
        assert store.latest_step() == 2
        assert store.restore(make_state()).step == 2
        store.save(99, make_state(99), {})
        assert store.steps() == [1, 2, 99]
    assert names(run) == ["1", "2", "99", "notes"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


METADATA = "orbax.checkpoint._src.metadata.checkpoint._MetadataStoreImpl"

DAMAGE = {
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "flipped": flip,
    "garbled": lambda path: path.write_bytes(b"\xff\x00" * path.stat().st_size),
}


@pytest.mark.parametrize("how", DAMAGE)
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a write: an error from the system in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("step", [2, 3])  # one to replace, and a new one
@pytest.mark.parametrize("size", [0, 1 << 10, 1 << 16, 1 << 18])  # what fails: all, or a part
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
        store.save(step % 7 if step > 20 else step, state, {"value": step})
        print(step, flush=True)
"""


def test_a_killed_writer_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """Killed at any moment: what is there is consistent, and a writing store opens."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    template = {"x": np.zeros((1 << 18,), np.float32), "y": np.float32(0)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        for _ in range(30):
            writer.stdout.readline()
        time.sleep(0.05 * np.random.default_rng(os.getpid()).random())
        writer.send_signal(signal.SIGKILL)
    with CheckpointStore(tmp_path) as store:
        assert store.steps()
        for step in store.steps():
            saved = store.restore(template, step=step)
            assert (np.asarray(saved.state["x"]) == saved.progress["value"]).all()
        store.save(50, template, {})
        assert store.latest_step() == 50
    assert all(name.isdecimal() for name in names(tmp_path))


def test_it_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, 1, 2, 3, 4, keep_latest=2)
    with CheckpointStore(tmp_path, read_only=True) as store:
        store.restore(make_state())
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("absl").filters


def test_the_record_is_plain_json_beside_the_arrays(run: Path) -> None:
    stored = json.loads((run / "2" / "_CHECKPOINT_METADATA").read_text())
    entry = json.loads(stored["custom_metadata"]["text"])["arrays"]["params/cell/w"]
    assert (entry["dtype"], entry["shape"]) == ("float32", [4, 5])
