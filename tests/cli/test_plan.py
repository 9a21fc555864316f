"""What `plan` says of a model on a mesh is what the model takes there."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import pytest
from commands import Command, Refusal, plan_command
from processes import ROOT

from lstm_jax.cli.plan import read_arguments
from lstm_jax.systems import presets, system_of
from lstm_jax.systems.language import LanguageObjective
from lstm_jax.training.optimizer import make_optimizer
from lstm_jax.training.state import Program, bytes_a_device

SMALL = shlex.split(
    "shakespeare --vocabulary-size 64 --hidden-size 16 --embedding-size 8 --batch-size 32"
)
WORDS = shlex.split("shakespeare --vocabulary-size 793472 --sequence-length 20")
LARGE = shlex.split("--hidden-size 2048 --projection-size 512 --embedding-size 512")
LARGER = shlex.split("--layers 2 --hidden-size 8192 --projection-size 1024 --embedding-size 1024")

Planned = Callable[..., Any]


@pytest.fixture
def planned(call: Command) -> Planned:
    def planned(*arguments: object) -> Any:
        code, out, err = call(plan_command, *arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return planned


SHAPES = ("--cell minlstm", "--cell diag-lstm", "--no-use-bias", "--backend cudnn --layers 3")


@pytest.mark.parametrize("flags", [*(preset.preset for preset in presets()), *SHAPES])
def test_parameters_are_those_of_the_model(flags: str, planned: Planned) -> None:
    arguments = [*flags.split(), "--vocabulary-size", "31"]
    config: Any = read_arguments(arguments, "plan").config
    params = system_of(config).model_of(config, 31).init(jax.random.key(0))
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in params._asdict().items()
        if jax.tree.leaves(part)
    }
    found = planned(*arguments)
    assert found["parameters"] == sizes | {"total": sum(sizes.values())}
    assert found["memory"]["parameters"] == 4 * sum(sizes.values())


def test_frozen_vectors_are_held_and_neither_learnt_nor_exchanged(planned: Planned) -> None:
    """Besides the embedding, which learns the vectors of words that have none."""
    flags = ["reviews", "--vocabulary-size", 100, "--devices", 2]
    learnt, frozen = planned(*flags), planned(*flags, "--frozen-embedding")
    assert frozen["memory"]["frozen vectors"] == 4 * 100 * 50
    assert (learnt["parameters"], learnt["traffic"]) == (frozen["parameters"], frozen["traffic"])
    for part in ("gradients", "Adam's moments"):
        assert learnt["memory"][part] == frozen["memory"][part]


@pytest.mark.parametrize("shard_state", ["none", "moments", "all"])
@pytest.mark.parametrize(
    ("tokens", "devices", "tensor"), [(64, 1, 1), (64, 2, 1), (64, 4, 1), (64, 4, 2), (63, 4, 2)]
)
def test_a_state_takes_these_bytes_of_a_device(
    tokens: int, devices: int, tensor: int, shard_state: str, planned: Planned
) -> None:
    mesh = ["--devices", devices, "--tensor", tensor, "--shard-state", shard_state]
    arguments = [*map(str, [*SMALL, "--vocabulary-size", tokens, *mesh])]
    config: Any = read_arguments(arguments, "plan").config
    objective = LanguageObjective(system_of(config).model_of(config, tokens), 50)
    optimizer = make_optimizer(config.optimizer, lambda updates: 1e-3)
    program = Program(objective, optimizer, 1, 32, config.mesh, (), config.shard_state)
    memory = planned(*arguments)["memory"]
    counts = 8  # of updates: Adam's, and the learning rate's
    assert memory["parameters"] + memory["Adam's moments"] + counts == bytes_a_device(program)
    part = memory["Adam's moments"] / memory["parameters"]
    assert (part == 2) == (shard_state != "moments" or devices == 1)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_what_is_kept_for_the_backward_pass_is_the_nth_part(devices: int, planned: Planned) -> None:
    alone, shared = (planned(*SMALL, "--devices", n)["memory"] for n in (1, devices))
    kept = "kept for the backward pass"
    assert shared[kept] * devices == pytest.approx(alone[kept], rel=0.05)


@pytest.mark.parametrize(("devices", "tensor"), [(1, 1), (2, 1), (8, 1), (8, 2), (8, 8)])
def test_gradients_and_parameters_go_in_a_ring(devices: int, tensor: int, planned: Planned) -> None:
    mesh = ["--devices", devices, "--tensor", tensor]
    traffic, split = (
        planned(*SMALL, *mesh, "--shard-state", each)["traffic"] for each in ("none", "all")
    )
    sizes = planned(*SMALL)["parameters"]
    layers, vocabulary = (4 * size for size in (sizes["layers"], sizes["total"] - sizes["layers"]))
    for name, size, n in (
        ("layers", layers, devices),
        ("vocabulary", vocabulary // tensor, devices // tensor),
    ):
        gathered = round(size * (n - 1) / n)
        summed = traffic.get(f"gradients of the {name}, summed", {"sent": 0})
        assert summed["sent"] == 2 * gathered
        assert split.get(f"parameters of the {name}, gathered", summed)["sent"] == gathered
    if tensor == 1:
        assert traffic["total"]["sent"] == 2 * (layers + vocabulary) * (devices - 1) // devices


@pytest.mark.parametrize(
    ("model", "work_ms", "expected"),
    [
        (LARGE, 16, [(8, 1, 13.2, 14), (64, 1, 13.2, 130), (64, 8, 1.78, 16)]),
        (LARGER, 37, [(8, 1, 28.4, 31), (64, 1, 28.4, 280), (64, 8, 5.67, 52)]),
    ],
)
def test_models_of_a_billion_parameters(
    model: list[str], work_ms: float, expected: list[tuple[float, ...]], planned: Planned
) -> None:
    """As worked out by hand: 16 bytes a parameter; rings of 400 GB/s in a node, 50 between."""
    for devices, tensor, gigabytes, ms in expected:
        mesh = ["--devices", devices, "--batch-size", 128 * devices, "--tensor", tensor]
        found = planned(*WORDS, *model, *mesh)
        held = sum(found["memory"][part] for part in ("parameters", "gradients", "Adam's moments"))
        assert held / 1e9 == pytest.approx(gigabytes, 0.01)
        assert found["traffic"]["total"]["ms"] == pytest.approx(ms, rel=0.04)
        assert found["work_ms"] == pytest.approx(work_ms, rel=0.02)


def test_a_vocabulary_that_does_not_divide_is_gathered(planned: Planned) -> None:
    """For it is whole between the steps."""
    mesh = ["--devices", 8, "--tensor", 8]
    odd, even = (planned(*SMALL, "--vocabulary-size", tokens, *mesh) for tokens in (63, 64))
    flat = "gradients, flat to be summed"
    assert odd["memory"][flat] == even["memory"][flat]
    gathered = "gradients of the vocabulary, gathered"
    assert gathered in odd["traffic"] and gathered not in even["traffic"]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ([], "give --vocabulary-size N"),
        ([*SMALL, "--devices", "3"], "a multiple"),
        ([*SMALL, "--devices", "8", "--tensor", "3"], "does not divide 8 devices; lower it"),
        ([*SMALL, "--batch-size", "128", "--devices", "128", "--tensor", "128"], "64 tokens"),
        (["reviews", "--devices", "2", "--tensor", "2"], "leave tensor at 1"),
        ([*SMALL, "--tensor", "0"], "at least 1"),
        ([*SMALL, "--link-gigabytes", "0"], "above 0"),
        (["novel"], "choose one of docs"),
    ],
)
def test_the_impossible_has_a_cure(arguments: list[str], cure: str, refusal: Refusal) -> None:
    assert cure in refusal(plan_command, *arguments)


def test_no_accelerator_is_touched_and_the_table_has_what_the_json_has(planned: Planned) -> None:
    found = planned(*SMALL, "--devices", 4, "--tensor", 2)
    line = [sys.executable, *shlex.split("-m lstm_jax plan --devices 4 --tensor 2"), *SMALL]
    env = os.environ | {"JAX_PLATFORMS": "tpu"}  # there is none, which JAX would complain of
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line[2:46].strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    names = [name for kind in ("parameters", "memory", "traffic") for name in found[kind]]
    assert rows[: len(names)] == names
    assert f"{found['parameters']['total']:,}" in done.stdout
