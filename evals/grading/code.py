"""Graders of code benchmarks: a response's program is run on the benchmark's own tests.

Expected outputs stay in this process; programs run in :mod:`reopold.sandbox`. A program that did
not run to its end gets the sandbox's status; `sandbox_failure` says nothing about the program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from evals.benchmarks.base import Row, pick
from evals.grading.code_compare import decode_report, decode_value, same_output, same_value
from evals.grading.code_extract import between_last_fences, humaneval_program, last_program
from evals.grading.code_runs import HEADER, run, with_header
from evals.grading.code_tests import (
    Case,
    Suite,
    leetcode_calls,
    livecodebench_suite,
    stdin_tests,
)
from evals.grading.verdict import NO_ANSWER, Context, Status, Verdict
from reopold.sandbox import Limits, Outcome, SandboxFailure

#: Of one test (LiveCodeBench's default).
SECONDS = 6
#: Of one program with all its assertions (human-eval, evaluate_functional_correctness).
HUMANEVAL_SECONDS = 3.0
MEMORY_BYTES = 4 << 30
#: Output beyond what is expected; in official runs, where nothing bounds it, all of it.
SPARE_OUTPUT_BYTES = 1 << 20
OFFICIAL_OUTPUT_BYTES = 64 << 20


def grade_livecodebench(response: str, row: Row, context: Context) -> Verdict:
    """LiveCodeBench code generation (evaluation/testing_util.py), to the first test that fails.

    The program is the text between the last two lines with a fence. sound: each test in a process
    of its own, stdin programs as ordinary scripts. official: all tests in one process, the way
    the authors' harness does it, so that what fails there for the harness's sake fails here:
    threads that outlive the main function, a main block that is not the last statement, iteration
    over `sys.stdin`, `sys.stdin.buffer.readline`, `from sys import stdin`.

    Raises:
        ConfigError: the row lacks its tests.
    """
    suite = livecodebench_suite(row)
    program = between_last_fences(response)
    if not program.strip():
        return NO_ANSWER
    grade = _official if context.rule == "official" else _sound
    return _verdict(program, lambda: grade(program, suite))


def grade_codeforces(response: str, row: Row, context: Context) -> Verdict:
    """Programs that read stdin; LiveCodeBench's limits and comparison.

    Raises:
        ConfigError: the row has no tests.
    """
    tests = stdin_tests(row)
    program = last_program(response)
    if not program.strip():
        return NO_ANSWER
    return _verdict(program, lambda: _first_failure(_script(program, test) for test in tests))


def grade_humaneval(response: str, row: Row, context: Context) -> Verdict:
    """HumanEval (human-eval, execution.py): prompt + completion + test + `check(entry_point)`.

    A program that ends before the check has returned has not passed.

    Raises:
        ConfigError: the row lacks a field.
    """
    entry_point = str(pick(row, "entry_point"))
    payload = {"test": str(pick(row, "test")), "entry_point": entry_point}
    program = humaneval_program(response, str(pick(row, "prompt")), entry_point)
    if not response.strip():
        return NO_ANSWER

    def status() -> Status:
        limits = Limits(HUMANEVAL_SECONDS, MEMORY_BYTES)
        outcome = run(program, limits=limits, function="check", payload=payload)
        if outcome.status != "ok":
            return outcome.status
        return "ok" if outcome.result == "passed" else "wrong"

    return _verdict(program, status)


def grade_leetcode(response: str, row: Row, context: Context) -> Verdict:
    """LeetCode with assertions `candidate(...) == literal`, all on one candidate.

    Raises:
        ConfigError: the row's tests look otherwise.
    """
    tests = leetcode_calls(row)
    program = last_program(response)
    if not program.strip():
        return NO_ANSWER
    payload = {"header": HEADER, "candidate": tests.candidate, "calls": tests.calls}

    def status() -> Status:
        limits = Limits(SECONDS * len(tests.calls), MEMORY_BYTES)
        outcome = run(program, limits=limits, function="call_candidate", payload=payload)
        values = _reported(outcome)
        if not isinstance(values, list) or len(values) != len(tests.expected):
            return _failure(outcome)
        return _right(
            same_value(decode_value(value), expected, tuples_are_lists=False)
            for value, expected in zip(values, tests.expected, strict=True)
        )

    return _verdict(program, status)


def _verdict(program: str, grade: Callable[[], Status]) -> Verdict:
    try:
        status = grade()
    except SandboxFailure:
        status = "sandbox_failure"
    return Verdict(status == "ok", program, status)


def _first_failure(statuses: Iterable[Status]) -> Status:
    return next((status for status in statuses if status != "ok"), "ok")


def _right(comparisons: Iterable[bool]) -> Status:
    return "ok" if all(comparisons) else "wrong"


def _sound(program: str, suite: Suite) -> Status:
    if suite.function is None:
        return _first_failure(_script(program, test) for test in suite.tests)
    try:
        parsed = _functional(suite)
    except ValueError:
        return "runtime_error"
    return _first_failure(
        _one_call(program, suite.function, arguments, expected) for arguments, expected in parsed
    )


def _functional(suite: Suite) -> list[tuple[list[Any], Any]]:
    """Arguments (a line each) and expected value of every test, from their JSON.

    Raises:
        ValueError: a test is faulty. The published data have such problems (ERRATA.md); no program
            passes them, by the official rule either.
    """
    return [
        ([json.loads(line) for line in test.input.split("\n")], json.loads(test.output))
        for test in suite.tests
    ]


def _script(program: str, test: Case) -> Status:
    limits = Limits(SECONDS, MEMORY_BYTES, SPARE_OUTPUT_BYTES + 4 * len(test.output))
    outcome = run(with_header(program), limits=limits, stdin=test.input)
    if outcome.status != "ok":
        return outcome.status
    return _right([same_output(outcome.stdout, test.output)])


def _one_call(program: str, function: str, arguments: list[Any], expected: Any) -> Status:
    payload = {"header": HEADER, "function": function, "arguments": arguments}
    limits = Limits(SECONDS, MEMORY_BYTES)
    outcome = run(program, limits=limits, function="call", payload=payload)
    value = _reported(outcome)
    if value is None:
        return _failure(outcome)
    return _right([same_value(decode_value(value), expected)])


def _official(program: str, suite: Suite) -> Status:
    count = len(suite.tests)
    inputs: list[Any] = [test.input for test in suite.tests]
    expected: list[Any] = [test.output for test in suite.tests]
    if suite.function is not None:
        try:
            pairs = _functional(suite)
        except ValueError:
            return "runtime_error"
        inputs, expected = [list(column) for column in zip(*pairs, strict=True)]
    payload = {
        "header": HEADER,
        "function": suite.function,
        "inputs": inputs,
        "seconds": SECONDS,
    }
    limits = Limits((SECONDS + 1) * count + 5, MEMORY_BYTES, OFFICIAL_OUTPUT_BYTES)

    def status(alone: bool) -> Status:
        outcome = run(
            program, limits=limits, function="run_officially", payload=payload, alone=alone
        )
        return _official_status(outcome, expected, suite.function is None)

    first = status(alone=False)
    return status(alone=True) if first == "timeout" else first


def _official_status(outcome: Outcome, expected: list[Any], is_text: bool) -> Status:
    """From what the single process reported, test by test.

    What was reported stands even if the process did not end then (a thread that went on).
    """
    if outcome.result is None:
        return _failure(outcome)
    results = _reported(outcome, finished=False)
    if not isinstance(results, list):
        return "runtime_error"
    statuses = [
        _official_test(result, wanted, is_text)
        for result, wanted in zip(results, expected, strict=False)
    ]
    complete = len(results) == len(expected)
    return _first_failure([*statuses, "ok" if complete else "runtime_error"])


def _official_test(result: Any, expected: Any, is_text: bool) -> Status:
    match result:
        case ["output", str(text)] if is_text:
            return _right([same_output(text, expected)])
        case ["value", value] if not is_text:
            return _right([same_value(decode_value(value), expected)])
        case ["timeout"]:
            return "timeout"
    return "runtime_error"


def _reported(outcome: Outcome, *, finished: bool = True) -> Any:
    """The JSON that a driver reported; None for none, or for one of a program that failed."""
    if outcome.result is None or (finished and outcome.status != "ok"):
        return None
    return decode_report(outcome.result)


def _failure(outcome: Outcome) -> Status:
    return outcome.status if outcome.status != "ok" else "runtime_error"
