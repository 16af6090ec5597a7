"""Graders of code on programs that really run in the sandbox."""

from __future__ import annotations

import gzip
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from code_rows import DOUBLE, HUMANEVAL, LEETCODE, fenced, function_row, stdin_row

from evals.grading import code
from evals.grading.verdict import Context, Rule, Status

SOUND, OFFICIAL = Context("sound"), Context("official")
BOTH = pytest.mark.parametrize("rule", ["sound", "official"])


def status(program: str, row: dict[str, Any], rule: Rule = "sound") -> Status:
    verdict = code.grade_livecodebench(fenced(program), row, Context(rule))
    assert verdict.correct is (verdict.status == "ok")
    assert verdict.extracted == textwrap.dedent(program)
    return verdict.status


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may take 0.3 seconds: for those that shall not end in time."""
    monkeypatch.setattr(code, "SECONDS", 0.3)


class TestStdin:
    @BOTH
    def test_every_test_must_pass(self, rule: Rule) -> None:
        assert status("print(2 * int(input()))", DOUBLE, rule) == "ok"
        assert status("print(2)", DOUBLE, rule) == "wrong"
        assert status("n = int(input())\nprint(1 / (5 - n))", DOUBLE, rule) == "wrong"
        assert status("n = int(input())\nprint(2 // (5 - n) + 2)", DOUBLE, rule) == "runtime_error"

    @BOTH
    def test_an_error_is_no_wrong_answer(self, rule: Rule) -> None:
        assert status("print(2 * int(input()) / 0)", DOUBLE, rule) == "runtime_error"
        assert status("print(2 * int(input(", DOUBLE, rule) == "runtime_error"

    @BOTH
    def test_too_slow(self, rule: Rule, brief: None) -> None:
        assert status("while True: pass", DOUBLE, rule) == "timeout"
        endless = "def f(x):\n    while True: pass"
        assert status(endless, function_row(("1", "2")), rule) == "timeout"

    def test_limits_of_memory_and_output(self) -> None:
        assert status("x = bytearray(5 << 30)", DOUBLE) == "memory"
        assert status("while True: print('x' * 100000)", DOUBLE) == "output_limit"

    def test_long_output_that_is_expected_is_no_excess(self) -> None:
        wanted = "x" * (1 << 21)
        assert status("print('x' * (1 << 21))", stdin_row(("", wanted))) == "ok"

    @BOTH
    def test_the_header_is_there(self, rule: Rule) -> None:
        program = "print(2 * int(deque([input()])[0]) + floor(sqrt(0)))"
        assert status(program, DOUBLE, rule) == "ok"

    @BOTH
    def test_exit_is_an_end_like_any_other(self, rule: Rule) -> None:
        assert status("print(2 * int(input()))\nexit()", DOUBLE, rule) == "ok"
        assert status("import sys\nprint(2 * int(input()))\nsys.exit(0)", DOUBLE, rule) == "ok"

    def test_a_script_that_exits_with_an_error_has_failed(self) -> None:
        assert status("print(2 * int(input()))\nexit(1)", DOUBLE) == "runtime_error"

    def test_no_answer(self) -> None:
        for response in ("", "print(1)", "```python\nprint(1)", "```\n\n```"):
            verdict = code.grade_livecodebench(response, DOUBLE, SOUND)
            assert (verdict.status, verdict.extracted) == ("no_answer", None)

    @pytest.mark.parametrize(
        ("program", "official"),
        [
            # A thread that nobody waits for prints after the harness has looked.
            ("""
             import threading, time
             def main():
                 time.sleep(0.3)
                 print(2 * int(input()))
             threading.Thread(target=main).start()
             """, "wrong"),
            # A main block that is spelt otherwise is never entered.
            ("""
             def main():
                 print(2 * int(input()))
             if '__main__' == __name__:
                 main()
             """, "wrong"),
            # One that is spelt as usual is unwrapped.
            ("""
             def main():
                 print(2 * int(input()))
             if __name__ == "__main__":
                 main()
             """, "ok"),
            # The name is bound before the harness replaces sys.stdin.
            ("from sys import stdin\nprint(2 * int(stdin.readline()))", "runtime_error"),
            ("import sys\nprint(2 * int(sys.stdin.readline()))", "ok"),
            ("import sys\nprint(2 * int(sys.stdin.read()))", "ok"),
            ("import sys\nprint(2 * int(sys.stdin.buffer.read()))", "ok"),
            ("import sys\nfor line in sys.stdin: print(2 * int(line))", "runtime_error"),
            ("print(2 * int(open(0).read()))", "runtime_error"),
            # Variables of the program are locals of a function there.
            ("""
             n = int(input())
             def double():
                 global n
                 n *= 2
             double()
             print(n)
             """, "runtime_error"),
            # Imports come first there, whatever they stood behind.
            ("from resource import getrlimit\nprint(2 * int(input()))", "runtime_error"),
            ("print(2 * int(input()))\nquit()", "runtime_error"),
            ("from __future__ import annotations\nprint(2 * int(input()))", "runtime_error"),
            ("import sys\nprint(2 * int(input()))\nsys.stdout.close()", "runtime_error"),
        ],
    )  # fmt: skip
    def test_what_fails_in_the_official_harness_alone(self, program: str, official: Status) -> None:
        assert status(program, DOUBLE, "sound") == "ok"
        assert status(program, DOUBLE, "official") == official

    def test_the_official_stand_in_for_stdin(self) -> None:
        pair = stdin_row(("3\n4\n", "7"))
        both = "import sys\nread = sys.stdin.{}\nprint(int(read()) + int(read()))"
        assert status(both.format("readline"), pair, "official") == "ok"
        assert status(both.format("buffer.readline"), pair, "official") == "wrong"  # 3 + 3
        # After the last line comes no empty text there, but StopIteration.
        program = "import sys\nread = sys.stdin.readline\nread(), read(), read()\nread()\nprint(7)"
        assert status(program, pair, "official") == "runtime_error"
        assert status(program, pair, "sound") == "ok"
        blank = stdin_row(("3\n\n4\n", "7"))
        program = "a = input()\ninput()\nprint(int(a) + int(input()))"
        assert status(program, blank, "sound") == "ok"
        assert status(program, blank, "official") == "runtime_error"  # EOFError at an empty line

    def test_state_leaks_between_official_tests_alone(self) -> None:
        program = (
            "import math\nmath.n = getattr(math, 'n', 0) + 1\nprint(2 * int(input()) + math.n)"
        )
        row = stdin_row(("1", "3"), ("5", "11"))
        assert status(program, row, "sound") == "ok"
        assert status(program, row, "official") == "wrong"

    def test_the_official_limit_is_rearmed_for_every_test(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(code, "SECONDS", 0.7)
        row = stdin_row(*[("1", "2")] * 3)
        assert status("import time\ntime.sleep(0.3)\nprint(2)", row, "official") == "ok"

    def test_the_official_alarm_is_an_exception_that_a_program_may_catch(self, brief: None) -> None:
        program = (
            "while True:\n    try:\n        while True: pass\n    except Exception: break\nprint(2)"
        )
        assert status(program, stdin_row(("1", "2")), "official") == "ok"
        assert status(program, stdin_row(("1", "2")), "sound") == "timeout"


class TestFunctions:
    @BOTH
    def test_a_method_or_a_plain_function(self, rule: Rule) -> None:
        row = function_row(("[1, 2]\n3", "[3, 6]"), ("[]\n0", "[]"))
        method = "class Solution:\n    def f(self, x: List[int], n: int): return [n * v for v in x]"
        assert status(method, row, rule) == "ok"
        assert status("def f(x, n):\n    return tuple(n * v for v in x)", row, rule) == "ok"
        assert status("def f(x, n):\n    return x", row, rule) == "wrong"
        assert status("def g(x, n):\n    return x", row, rule) == "runtime_error"
        assert status("def f(x):\n    return x", row, rule) == "runtime_error"

    @BOTH
    def test_values_are_compared_as_python_compares_them(self, rule: Rule) -> None:
        def gives(value: str, expected: str) -> Status:
            return status(f"def f(x):\n    return {value}", function_row(("1", expected)), rule)

        assert gives("[(1, 2)]", "[[1, 2]]") == "wrong"
        assert gives("0.1 + 0.2", "0.3") == "wrong"  # no tolerance
        assert gives("deque([1])", "[1]") == "wrong"
        right = {"True": 1, "inf": float("inf"), "{'a': [1]}": {"a": [1]}, "10 ** 4000": 10**4000}
        assert gives(f"({', '.join(right)})", json.dumps(list(right.values()))) == "ok"

    def test_failures(self) -> None:
        row = function_row(("1", "2"))
        assert status("def f(x):\n    return bytearray(5 << 30)", row) == "memory"
        assert status("import os\ndef f(x):\n    os._exit(0)", row) == "runtime_error"
        assert status("import os\ndef f(x):\n    os._exit(0)", row, "official") == "runtime_error"
        assert status("def f(x):\n    raise SystemExit(0)", row) == "runtime_error"

    def test_printing_does_no_harm(self) -> None:
        row = function_row(("1", "2"))
        assert status("def f(x):\n    print('[\"value\", 3]')\n    return 2", row) == "ok"

    def test_an_object_that_equals_everything_is_wrong(self) -> None:
        program = "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()"
        assert status(program, function_row(("1", "2"))) == "wrong"

    @BOTH
    def test_a_problem_with_a_faulty_test_is_passed_by_nobody(self, rule: Rule) -> None:
        row = function_row(("1", "2"), ("", "2"))
        assert status("def f(x):\n    return 2", row, rule) == "runtime_error"

    def test_sound_tests_share_no_state_and_official_ones_do(self) -> None:
        row = function_row(("1", "1"), ("1", "1"))
        program = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
        assert status(program, row, "sound") == "ok"
        assert status(program, row, "official") == "wrong"


class TestHumanEval:
    def grade(self, response: str) -> Status:
        return code.grade_humaneval(response, HUMANEVAL, SOUND).status

    def test_completions_and_answers(self) -> None:
        assert self.grade("    return 2 * x") == "ok"
        assert self.grade(fenced("def double(x):\n    return 2 * x")) == "ok"
        assert self.grade("    return 2") == "wrong"
        assert self.grade("    return y") == "runtime_error"
        assert self.grade(" ") == "no_answer"

    def test_leaving_before_the_check_is_no_pass(self) -> None:
        assert self.grade("    return 2 * x\nimport sys\nsys.exit(0)") == "runtime_error"
        assert self.grade("    import os\n    os._exit(0)") == "runtime_error"
        assert self.grade("    raise SystemExit") == "runtime_error"
        assert self.grade("    return 0\ndef check(candidate): pass") == "wrong"

    def test_a_main_block_is_not_run(self) -> None:
        assert self.grade("    return 2 * x\nif __name__ == '__main__':\n    exit(1)") == "ok"

    def test_the_authors_example_gives_one_half(
        self, benchmarks_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = benchmarks_dir / "humaneval"
        row = json.loads((folder / "example_problem.jsonl").read_text())
        found = []
        for line in (folder / "example_samples.jsonl").read_text().splitlines():
            completion = json.loads(line)["completion"]
            limit = 0.5 if "sleep(10)" in completion else code.HUMANEVAL_SECONDS
            with monkeypatch.context() as patch:
                patch.setattr(code, "HUMANEVAL_SECONDS", limit)
                found.append(code.grade_humaneval(completion, row, SOUND).status)
        assert found == ["runtime_error", "timeout", "runtime_error", "ok", "ok", "ok"]

    @pytest.mark.slow
    def test_canonical_solutions_pass(self, benchmarks_dir: Path) -> None:
        rows = humaneval(benchmarks_dir)
        assert len(rows) == 164
        for row in rows:
            solution = row["canonical_solution"]
            assert code.grade_humaneval(solution, row, SOUND).correct, row["task_id"]

    def test_helpers_of_the_prompt_serve_a_fenced_answer(self, benchmarks_dir: Path) -> None:
        row = humaneval(benchmarks_dir)[38]
        assert "def encode_cyclic" in row["prompt"]
        answer = "def decode_cyclic(s: str):\n" + row["canonical_solution"]
        assert code.grade_humaneval(f"```python\n{answer}```", row, SOUND).correct


def humaneval(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


class TestLeetCode:
    def test_assertions(self) -> None:
        def grade(body: str) -> Status:
            program = f"class Solution:\n    def double(self, x: int) -> int:\n        {body}"
            return code.grade_leetcode(program, LEETCODE, SOUND).status

        assert grade("return 2 * x") == "ok"
        assert grade("return 2") == "wrong"
        assert grade("return 1 / 0") == "runtime_error"
        assert grade("raise SystemExit") == "runtime_error"
        assert code.grade_leetcode("I give up.", LEETCODE, SOUND).status == "no_answer"

    @pytest.mark.slow
    def test_reference_solutions_pass(self, benchmarks_dir: Path) -> None:
        rows = json.loads((benchmarks_dir / "leetcode_functional" / "leetcode.json").read_text())
        assert len(rows) == 200
        for number, row in enumerate(rows):
            assert code.grade_leetcode(row["solutions"], row, SOUND).correct, number


class TestCodeforces:
    def test_a_published_problem(self, benchmarks_dir: Path) -> None:
        path = benchmarks_dir / "codeforces_stdin" / "codeforces.json"
        rows = json.loads(path.read_text())
        assert len(rows) == 408
        program = "for _ in range(int(input())):\n    print(*sorted(input().split()))"
        assert code.grade_codeforces(fenced(program), rows[0], SOUND).correct
        program = program.replace("sorted", "reversed")
        assert code.grade_codeforces(fenced(program), rows[0], SOUND).status == "wrong"
        assert code.grade_codeforces("Sorry.", rows[0], SOUND).status == "no_answer"
