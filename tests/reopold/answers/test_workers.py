"""Workers answer in order, end what takes too much, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evals.grading import grade_in_workers
from evals.grading.verdict import NO_ANSWER, Context, Verdict
from reopold.answers import workers
from reopold.answers.workers import Result, WorkerError, call_in_workers
from reopold.config import ConfigError


def die_once(marker: str) -> str:
    path = Path(marker)
    if path.exists():
        return "alive"
    path.touch()
    os._exit(3)


def refuse_negative(number: int) -> int:
    if number < 0:
        raise ConfigError("a record has no field 'answer'")
    return number


def grade_length(response: str, row: dict[str, int], context: Context) -> Verdict:
    if not response:
        return NO_ANSWER
    return Verdict(len(response) == row["length"], response, "ok")


def own_id() -> int:
    return os.getpid()


def times() -> tuple[int, int]:
    soft, _ = __import__("resource").getrlimit(__import__("resource").RLIMIT_AS)
    return os.getpid(), soft


def call(function: str, *arguments: object) -> Result:
    return call_in_workers(function, [arguments])[0]


def test_results_come_in_the_order_of_the_calls() -> None:
    calls = [(number, 3) for number in range(1000)]
    results = call_in_workers("operator:mul", calls)
    assert results == [Result("ok", number * 3) for number in range(1000)]
    assert call_in_workers("operator:mul", []) == []


def test_verdicts_come_back_whole() -> None:
    work = [("abc", {"length": 3}, Context()), ("", {"length": 0}, Context("official"))]
    verdicts = grade_in_workers(f"{__name__}:grade_length", work)
    assert verdicts == [Verdict(True, "abc", "ok"), NO_ANSWER]


def test_a_call_that_computes_for_too_long_is_ended_within_one_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "CPU_SECONDS", 0.3)
    start = time.monotonic()
    calls = [(2, 3), (7, 10**9), (2, 5)]
    assert [result.status for result in call_in_workers("operator:pow", calls)] == [
        "ok",
        "timeout",
        "ok",
    ]
    assert time.monotonic() - start < 30


def test_a_call_that_waits_for_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WALL_SECONDS", 0.3)
    results = call_in_workers("time:sleep", [(0,), (100,), (0,)])
    assert [result.status for result in results] == ["ok", "timeout", "ok"]


def test_starting_a_worker_takes_nothing_from_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WALL_SECONDS", 0.2)
    call("os:_exit", 1)  # this thread of the pool needs a new worker: sympy takes longer to import
    for _ in range(4):
        assert call("reopold.answers.equality:equal", "1", "1.0") == Result("ok", True)


def test_a_call_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    results = call_in_workers("operator:mul", [("ab", 2), ("a", 8 * 2**30), ("c", 2)])
    assert [result.status for result in results] == ["ok", "memory", "ok"]
    monkeypatch.setattr(workers, "MEMORY_BYTES", 2**30)
    assert call(f"{__name__}:times").value[1] == 2**30


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_dies_takes_no_neighbour_along(code: int) -> None:
    calls = [(number,) for number in range(5)]
    assert call("os:_exit", code) == Result("runtime_error")
    assert [result.value for result in call_in_workers("operator:neg", calls)] == [
        0, -1, -2, -3, -4,
    ]  # fmt: skip


def test_a_worker_killed_within_a_chunk_costs_that_call_alone() -> None:
    me = f"{__name__}:own_id"
    first = call(me).value
    assert first != os.getpid()
    calls = [(first, signal.SIGKILL), (first, 0), (os.getpid(), 0)]
    # It ends another worker or itself; a process that is gone raises, which is no death.
    statuses = [result.status for result in call_in_workers("os:kill", calls)]
    assert statuses[2] == "ok"
    assert {*statuses} <= {"ok", "runtime_error"}


def test_a_call_whose_worker_died_is_tried_once_more(tmp_path: Path) -> None:
    assert call(f"{__name__}:die_once", str(tmp_path / "died")) == Result("ok", "alive")


def test_an_exception_is_a_runtime_error_but_a_bad_record_is_the_callers() -> None:
    assert call("operator:truediv", 1, 0) == Result("runtime_error")
    with pytest.raises(ConfigError, match="no field 'answer'"):
        call_in_workers(f"{__name__}:refuse_negative", [(-1,), *((n,) for n in range(999))])
    # No stale result is read.
    assert call_in_workers("operator:truediv", [(1, 2)] * 500) == [Result("ok", 0.5)] * 500


@pytest.mark.parametrize("function", ["operator:nothing", "no_such_module:f"])
def test_a_function_that_is_not_there_is_said_so(function: str) -> None:
    with pytest.raises(WorkerError, match=function):
        call(function)


def test_threads_share_the_workers_without_mixing_results() -> None:
    def ask(base: int) -> list[object]:
        calls = [(base, number) for number in range(200)]
        return [result.value for result in call_in_workers("operator:add", calls)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(0, 6000, 1000)))
    assert answers == [[base + number for number in range(200)] for base in range(0, 6000, 1000)]
    assert len(workers._WORKERS) <= (os.cpu_count() or 1)
    assert threading.current_thread() is threading.main_thread()


def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    call_in_workers("operator:neg", [(number,) for number in range(100)])
    for worker in list(workers._WORKERS):
        worker.process.kill()
    assert call("operator:neg", 4) == Result("ok", -4)


PARENT = """
import threading, time
from reopold.answers import workers
workers.call_in_workers("os:getpid", [()] * 2)  # they run before they are left
threading.Thread(
    target=workers.call_in_workers, args=("time:sleep", [(600,)] * 2), daemon=True
).start()
time.sleep(0.5)
print(*[worker.process.pid for worker in workers._WORKERS], flush=True)
time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state[0] != "Z"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(end: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        parent.send_signal(end)
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
