"""Check and time the cases of `bench device`, one after the other.

Each way to run ours or a peer has its own process for the whole part. All ways of a case compile at
the same time, are compared with the host, and are then timed in turns.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.card import Record, state
from bench.contest import Pool, with_peer
from bench.device_cases import Case, Way
from bench.timing import take_turns
from bench.workers import Failed, Late, Reason, Server

ROUNDS = 3
SPEND_S, LEAST_S = 0.1, 0.005
"""Seconds of a turn, and of a single timing, in which shorter calls are repeated."""

PATIENCE_S = 60.0
_HOST = "host"


def race_all(cases: Iterable[Case], done: set[tuple[str, ...]], record: Record) -> None:
    late: dict[str, Reason] = {}  # these would delay every case
    references: dict[tuple[str, str], Any] = {}
    with Pool(PATIENCE_S) as pool:
        for case in cases:
            if not case.keys() <= done:
                _race(pool, case, late, references, record)
                done |= case.keys()


def _race(
    pool: Pool,
    case: Case,
    late: dict[str, Reason],
    references: dict[tuple[str, str], Any],
    record: Record,
) -> None:
    left_out = {way.name: late[way.name] for way in case.ways if way.name in late}
    key = (case.part, case.system)

    def ask(way: Way, method: Any, *given: Any) -> Any:
        """Answer of a way's process; None if it failed, and it is then left out."""
        if way.name in left_out:
            return None
        answer = pool.worker(way.name, way.environment).answer(method, *given)
        if not isinstance(answer, Reason):
            return answer
        left_out[way.name] = answer
        if isinstance(answer, Late):
            late[way.name] = answer
        if isinstance(answer, Failed):
            pool.drop(way.name)
        return None

    with ThreadPoolExecutor(len(case.ways) + 1) as threads:
        for way in case.ways:
            # Not in a thread: it changes the environment for a moment.
            pool.worker(way.name, way.environment)
        if key not in references:
            host = pool.worker(_HOST, {"JAX_PLATFORMS": "cpu"})
            references[key] = threads.submit(host.answer, Server.call, case.reference)

        def enter(way: Way) -> Any:
            given = (with_peer, partial(case.build, way=way), way.peer, way.options)
            entered, wanted = ask(way, Server.enter, *given), references[key].result()
            if isinstance(wanted, Reason):
                left_out.setdefault(way.name, wanted)
            return entered, ask(way, Server.show, wanted)

        answers = threads.map(enter, case.ways)
        entered = {way.name: answer for way, answer in zip(case.ways, answers, strict=True)}
    if isinstance(references[key].result(), Reason):
        pool.drop(_HOST)
        del references[key]

    def visit(way: Way, call: str) -> list[float]:
        how = (SPEND_S, 0.0 if call == "write" else LEAST_S)
        return ask(way, Server.visit, call, *how) or [math.nan]

    visits = {
        (way.name, call): partial(visit, way, call)
        for way in case.ways
        if way.name not in left_out
        for call in entered[way.name][0][0]
    }
    timings, card = take_turns(visits, ROUNDS) if visits else {}, state()
    for way in case.ways:
        fields: dict[str, Any] = {"implementation": way.name, "dtype": way.dtype or case.dtype}
        ask(way, Server.leave)
        if reason := left_out.get(way.name):
            record(case.system, **fields, failed=f"{reason.how}: {reason}"[:400])
            continue
        (first_s, settings), shown = entered[way.name]
        fields |= {"settings": settings, "shown": shown, "card": card, "tokens": case.tokens}
        for call, seconds in first_s.items():
            fields |= {"call": call, "first_s": seconds}
            fields["flops"] = 0 if call == "forward" else case.flops
            record(case.system, timings[way.name, call], **fields)
