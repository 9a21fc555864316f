"""Which of several processes this is: flags, then variables; what is missing is said."""

from __future__ import annotations

import pytest
from commands import Command, Refusal

from lstm_jax.cli.main import train_command

VARIABLES = [
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "JOB_COMPLETION_INDEX",
]


@pytest.mark.parametrize(
    ("flags", "variables", "says"),
    [
        ("--process-id 1 --process-count 2", {}, "give --coordinator HOST:PORT"),
        ("--process-count 2", {}, "give --coordinator HOST:PORT"),
        ("--coordinator host", {}, "the coordinator is 'host'; give HOST:PORT"),
        ("--coordinator host:x", {}, "give HOST:PORT"),
        ("--coordinator h:1 --process-id 2 --process-count 2", {}, "--process-id is at most 1"),
        ("--coordinator h:1 --process-count 2", {}, "--process-id"),
        ("--coordinator h:1 --process-id 0", {}, "--process-count"),
        ("--process-count 0", {}, "at least 1"),
        ("--dead-timeout 0", {}, "at least 1"),
        ("", {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is 'one'; set it to a number"),
        ("", {"JAX_NUM_PROCESSES": "2"}, "give --coordinator HOST:PORT"),
        ("", {"MASTER_ADDR": "h", "MASTER_PORT": "1", "RANK": "2", "WORLD_SIZE": "2"}, "at most 1"),
        ("", {"MASTER_ADDR": "h", "MASTER_PORT": "x", "RANK": "0"}, "MASTER_PORT is 'x'"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    flags: str,
    variables: dict[str, str],
    says: str,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert says in refusal(train_command, *flags.split(), "--run-dir", "never")


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_NTASKS": "1"}])
def test_one_process_alone_is_one(
    variables: dict[str, str], call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": "h", "MASTER_PORT": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    code, _, err = call(train_command, "--run-dir", "never", "--resume", "--eval-only")
    assert code == 2
    assert "never is not a run folder" in err
