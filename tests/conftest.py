"""Settings for the whole suite: four fake CPU devices, and slow tests on request."""

import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before jax is imported anywhere: sharding is tested on devices that share the CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import HealthCheck, settings
from promises import document_with_tables, write_tables
from recorded import Peer, Recording

# A whole run of the suite stood still once, idle, after many small asynchronous dispatches on the
# fake devices. The commands' own processes, which tests start too, keep the default.
jax.config.update("jax_cpu_enable_async_dispatch", False)

ON_CPU = os.environ["JAX_PLATFORMS"] == "cpu"

settings.register_profile(
    "project",
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Without LLVM's optimisations, which take most of the time; XLA's own passes run as ever.

    With `--slow`, what is compared with other libraries is fully optimised, and so is what a
    command's own process computes; so is all on an accelerator.
    """
    if config.getoption("--slow") or not ON_CPU:
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    # One piece of code a program: many small ones take longer to put together.
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10."):
        # Of its two ways to make code of fused operations, the one that takes a third of the time;
        # later versions have the other alone.
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    else:
        # A single operation is no fusion then, and is made into code without MLIR.
        os.environ["XLA_FLAGS"] += " --xla_disable_hlo_passes=fusion-wrapper"


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> None:
    is_optimised = hasattr(request.module, "PEERS") and request.config.getoption("--slow")
    jax.config.update("jax_disable_most_optimizations", ON_CPU and not is_optimised)


@pytest.fixture(autouse=True, scope="session")
def one_optimizer_for_the_same_settings() -> None:
    """So runs of the same settings share their compiled step; two of Optax's are never equal."""
    from lstm_jax.training import task

    for name in ("learning_rate_schedule", "make_optimizer"):
        setattr(task, name, cache(getattr(task, name)))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After a module or a slow test, drops the compiled functions if they are too many.

    Every one of them takes a few memory maps, of which Linux allows a process 65,530: a worker
    that kept them all came to "LLVM compilation error: Cannot allocate memory" near the end.
    """
    if nextitem is not None and nextitem.path == item.path and "slow" not in item.keywords:
        return
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 52_000:
        jax.clear_caches()


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole modules to each worker: so none makes a fixture or a program that the other has."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


RECORDINGS = pytest.StashKey[dict[Path, Recording]]()


@pytest.fixture(params=["recorded", pytest.param("live", marks=pytest.mark.slow)])
def peer(request: pytest.FixtureRequest) -> Peer:
    """Results of the libraries that the module names in `PEERS`: as recorded, and live."""
    how = "recording" if request.config.getoption("--record") else request.param
    if how != "recorded":
        for name in request.module.PEERS:
            pytest.importorskip(name, reason=f"{name}, the reference, is not installed")
    path = request.path.parent / "recorded" / f"{request.path.stem.removeprefix('test_')}.npz"
    recordings = request.config.stash.setdefault(RECORDINGS, {})
    recording = recordings.setdefault(path, Recording(path))
    return Peer(recording, request.node.originalname, request.module.PEERS, how)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--record"):
        for recording in session.config.stash.get(RECORDINGS, {}).values():
            recording.write()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    parser.addoption("--record", action="store_true", help="record what other libraries give now")
    parser.addoption(
        "--table",
        type=document_with_tables,
        help="a document for the tables of tests/faults and tests/hostile; both are then thorough",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    document = terminalreporter.config.getoption("--table")
    if document is not None:
        kinds = ("passed", "failed", "error")
        reports = [each for kind in kinds for each in terminalreporter.getreports(kind)]
        terminalreporter.write_line(write_tables(reports, document))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--record"):
        params = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
        items[:] = [items[n] for n, each in enumerate(params) if each.get("peer") == "live"]
    elif not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
