"""Settings for the whole suite: two fake CPU devices, and slow tests on request."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before jax is imported anywhere: sharding is tested on two devices that share the CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import HealthCheck, settings

# A whole run of the suite stood still once, idle, after many small asynchronous dispatches on the
# two fake devices. The commands' own processes, which tests start too, keep the default.
jax.config.update("jax_cpu_enable_async_dispatch", False)

settings.register_profile(
    "project",
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """The core, sampling and training: without LLVM's optimisations, which take most of the time.

    XLA's own passes, fusion among them, run as ever. Parity with PyTorch and Keras is tested
    fully optimised.
    """
    is_quick = (
        request.path.parent.name in ("core", "sampling", "training")
        and "parity" not in request.path.name
    )
    jax.config.update("jax_disable_most_optimizations", is_quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def little_compiled_code() -> Iterator[None]:
    """Each module leaves its compiled functions behind.

    Every one of them takes a few memory maps, of which Linux allows a process 65,530: a worker
    that kept them all came to "LLVM compilation error: Cannot allocate memory" near the end.
    """
    yield
    jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
