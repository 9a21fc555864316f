"""Processes of their own: what they are told, what comes back, and how they end."""

import os
import time
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from bench.timing import Visit, take_turns
from bench.workers import Built, Disagreement, Failed, Late, NotRun, Server, Worker


def variable(name: str) -> str | None:
    return os.environ.get(name)


def build(number: int) -> Built:
    return Built(
        {"add": lambda: number + 1, "print": lambda: print("no part of a table")}, {"a": "b"}
    )


def fail(error: type[Exception]) -> None:
    raise error("the reason")


def end() -> None:
    os._exit(3)


def test_a_worker_has_its_own_environment_and_gives_back_what_it_computes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with closing(Worker({"BENCH_TEST": "theirs"})) as worker, closing(Worker({})) as other:
        assert worker.ask(Server.call, variable, "BENCH_TEST") == "theirs"
        assert other.ask(Server.call, variable, "BENCH_TEST") is None
        assert worker.ask(Server.call, os.getpid) not in (
            os.getpid(),
            other.ask(Server.call, os.getpid),
        )
        np.testing.assert_array_equal(worker.ask(Server.call, np.arange, 3), np.arange(3))
        first_s, settings = worker.ask(Server.enter, build, 1)
        assert (set(first_s), settings) == ({"add", "print"}, {"a": "b"})
        assert len(worker.ask(Server.visit, "add")) > 1
        for kind, told in ((ValueError, NotRun), (Disagreement, Disagreement), (KeyError, Failed)):
            with pytest.raises(told, match="the reason"):
                worker.ask(Server.call, fail, kind)
        with pytest.raises(Failed, match="its process ended with 3"):
            worker.ask(Server.call, end)
    assert "BENCH_TEST" not in os.environ
    assert capfd.readouterr().out == ""


def test_one_that_does_not_answer_in_time_is_ended() -> None:
    with closing(Worker({}, limit_s=0.2)) as worker:
        with pytest.raises(Late, match=r"no answer in 0.2 s"):
            worker.ask(Server.call, time.sleep, 600)
        with pytest.raises(Failed, match="its process ended with -9"):
            worker.ask(Server.call, os.getpid)


def test_calls_that_take_little_are_asked_for_several_times_at_once() -> None:
    asked: list[int] = []

    def call(times: int = 1) -> None:
        asked.append(times)
        time.sleep(times * 2e-3)

    took = Visit(call)(0.05, 0.02)
    assert asked[:2] == [1, 1]
    assert len(set(asked[2:])) == 1
    assert 2 < asked[2] <= 10
    assert len(asked) == 2 + len(took) + 1
    assert all(2e-3 <= each < 0.02 for each in took)


def test_every_call_has_its_turn_and_they_take_turns_at_being_first() -> None:
    order: list[str] = []

    def visit(name: str) -> Any:
        return lambda: order.append(name) or [1e-3]

    timings = take_turns({name: visit(name) for name in "abc"}, 3)
    assert order == [*"abc", *"bca", *"cab"]
    assert timings["a"].median_ms == pytest.approx(1)
    assert timings["a"].calls == 3
