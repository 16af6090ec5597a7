"""How graders of code run programs: once more alone, and telling them nothing."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from code_rows import CASE, DOUBLE, HUMANEVAL, LEETCODE, fenced, function_row, stdin_row

from evals.grading import code, code_runs
from evals.grading.verdict import Context, Status
from reopold.sandbox import Limits, Outcome, SandboxFailure

SOUND, OFFICIAL = Context("sound"), Context("official")


class TestReruns:
    def outcome(self, status: Status) -> Outcome:
        return Outcome(status, "2", "", 0, 0.1, 0.1)  # type: ignore[arg-type]

    def test_a_timeout_counts_after_a_second_run_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone: list[bool] = []
        statuses: list[Status] = ["timeout", "ok"]

        def fake(*_: Any, **__: Any) -> Outcome:
            alone.append(code_runs._floor.claims == 1 and code_runs._floor.running == 1)
            return self.outcome(statuses[len(alone) - 1])

        monkeypatch.setattr(code_runs, "run_program", fake)
        verdict = code.grade_codeforces(fenced("x"), {"tests": [CASE]}, SOUND)
        assert verdict.correct and alone == [False, True]
        alone.clear()
        statuses = ["timeout", "timeout"]
        assert code.grade_codeforces(fenced("x"), {"tests": [CASE]}, SOUND).status == "timeout"
        alone.clear()
        statuses = ["runtime_error"]
        verdict = code.grade_codeforces(fenced("x"), {"tests": [CASE]}, SOUND)
        assert verdict.status == "runtime_error" and alone == [False]

    def test_nothing_else_runs_beside_the_second_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        active: list[str] = []
        beside: dict[str, list[str]] = {}
        lock = threading.Lock()
        tried: set[str] = set()

        def fake(code: str, **_: Any) -> Outcome:
            again = code in tried
            with lock:
                tried.add(code)
                active.append(code)
            time.sleep(0.01)
            with lock:
                if again:
                    beside[code] = list(active)
                active.remove(code)
            slow = code.startswith("slow") and not again
            return self.outcome("timeout" if slow else "ok")

        monkeypatch.setattr(code_runs, "run_program", fake)
        names = [f"{'slow' if i % 3 == 0 else 'fast'} {i}" for i in range(24)]
        with ThreadPoolExecutor(4) as pool:  # others come while one runs alone
            list(pool.map(lambda name: code_runs.run(name, limits=Limits()), names))
        assert beside == {name: [name] for name in names if name.startswith("slow")}
        assert (code_runs._floor.running, code_runs._floor.claims) == (0, 0)

    @pytest.mark.parametrize("first", ["alone", "shared"])
    def test_who_runs_alone_lets_nobody_in_and_waits_for_all(self, first: str) -> None:
        floor = code_runs._Floor()
        second = floor.shared if first == "alone" else floor.alone
        entered = threading.Event()

        def enter() -> None:
            with second():
                entered.set()

        with getattr(floor, first)():
            thread = threading.Thread(target=enter)
            thread.start()
            assert not entered.wait(0.05)
        thread.join(10)
        assert entered.is_set()

    def test_the_official_run_is_repeated_as_a_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        results = [[["output", "2"], ["timeout"]], [["output", "2"], ["output", "10"]]]
        calls: list[int] = []

        def fake(*_: Any, **__: Any) -> Outcome:
            calls.append(code_runs._floor.claims)
            return Outcome("ok", "", "", 0, 1, 1, json.dumps(results[len(calls) - 1]))

        monkeypatch.setattr(code_runs, "run_program", fake)
        assert code.grade_livecodebench(fenced("x"), DOUBLE, OFFICIAL).correct
        assert calls == [0, 1]

    @pytest.mark.parametrize("grader", ["livecodebench", "codeforces", "leetcode", "humaneval"])
    def test_a_broken_sandbox_is_no_mistake_of_the_program(
        self, grader: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> Outcome:
            raise SandboxFailure("no processes left")

        monkeypatch.setattr(code_runs, "run_program", broken)
        row = {
            "livecodebench": DOUBLE,
            "codeforces": {"tests": [CASE]},
            "leetcode": LEETCODE,
            "humaneval": HUMANEVAL,
        }[grader]
        verdict = getattr(code, f"grade_{grader}")(fenced("x = 1"), row, SOUND)
        assert (verdict.status, verdict.correct) == ("sandbox_failure", False)

    def test_expected_values_stay_outside_of_the_sandbox(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handed = ""

        def fake(*given: Any, **named: Any) -> Outcome:
            nonlocal handed
            handed += repr((given, named))
            return self.outcome("runtime_error")

        monkeypatch.setattr(code_runs, "run_program", fake)
        for rule in (SOUND, OFFICIAL):
            code.grade_livecodebench(fenced("x"), stdin_row(("input-1", "secret-1")), rule)
            code.grade_livecodebench(fenced("x"), function_row(('"input-2"', '"secret-2"')), rule)
        code.grade_codeforces(
            fenced("x"), {"tests": [{"input": "input-3", "output": "secret-3"}]}, SOUND
        )
        check = "def check(candidate):\n    assert candidate('input-4') == 'secret-4'\ncheck(f)"
        code.grade_leetcode(fenced("x"), {"tests": {"functional": check}}, SOUND)
        assert [handed.count(f"input-{number}") for number in (1, 2, 3, 4)] == [2, 2, 1, 1]
        assert "secret" not in handed

    def test_a_report_of_a_process_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread goes on. The harness has its results by then; an ordinary run is too slow."""

        def fake(*_: Any, **named: Any) -> Outcome:
            value = ["value", 3]
            official = "run_officially(" in named["driver"].splitlines()[-1]
            result = [["value", value]] if official else value
            return Outcome("timeout", "", "", None, 6, 0, json.dumps(result))

        monkeypatch.setattr(code_runs, "run_program", fake)
        row = function_row(("1", "3"))
        assert code.grade_livecodebench(fenced("x"), row, OFFICIAL).correct
        assert code.grade_livecodebench(fenced("x"), row, SOUND).status == "timeout"

    @pytest.mark.parametrize(
        "result",
        [
            *("", "no JSON", "[" * 5000, "3", "null", '[["output", 3]]', "[[]]", '["output"]'),
            # Right as far as they go, but of the first test alone.
            *('[["output", "2"]]', '[["value", 2]]', "[]"),
        ],
    )
    def test_a_forged_report_is_no_pass(self, result: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fake(*_: Any, **__: Any) -> Outcome:
            return Outcome("ok", "", "", 0, 1, 1, result)

        monkeypatch.setattr(code_runs, "run_program", fake)
        row = stdin_row(("1", ""))
        assert not code.grade_livecodebench(fenced("x"), row, OFFICIAL).correct
        assert not code.grade_livecodebench(fenced("x"), DOUBLE, OFFICIAL).correct
        row = function_row(("1", "3"))
        assert not code.grade_livecodebench(fenced("x"), row, SOUND).correct
        assert not code.grade_livecodebench(fenced("x"), row, OFFICIAL).correct
        assert not code.grade_leetcode(fenced("x"), LEETCODE, SOUND).correct
        assert not code.grade_humaneval(fenced("x"), HUMANEVAL, SOUND).correct
