"""Code benchmarks: LiveCodeBench, HumanEval, and two smaller suites with public tests.

Wordings are ours, the requested form is the authors': one fenced Python program.
"""

from __future__ import annotations

from collections.abc import Callable

from evals.benchmarks.base import Benchmark, Row, Sampling, Source, pick, text_id, user
from evals.benchmarks.code_metrics import tally, window

_TASK = "Write a correct Python program for the problem below; it must pass all tests."
_STDIN = (
    "Read the input from stdin and write the answer to stdout; do not test on the examples. "
    "Enclose the whole program in one block:\n```python\n# YOUR CODE HERE\n```"
)


def _livecodebench(row: Row) -> list[dict[str, str]]:
    """The two formats of lcb_runner/prompts/code_generation.py: with and without starter code."""
    question = f"{_TASK}\n\n### Question:\n{pick(row, 'question_content')}\n\n### Format:\n"
    starter = row.get("starter_code")
    if not starter:
        return user(question + _STDIN)
    form = "Complete the starter code and enclose all of it in one block:"
    return user(f"{question}{form}\n```python\n{starter}\n```")


def _tests(*names: str) -> Callable[[Row], str]:
    """Gold of programs: there is no one right answer to show.

    Raises:
        ConfigError: the row has no tests.
    """

    def gold(row: Row) -> str:
        pick(row, *names)
        return "passes the tests"

    return gold


LIVECODEBENCH = Benchmark(
    name="livecodebench",
    family="code",
    title="LiveCodeBench v6 (175)",
    source=Source(
        hub="livecodebench/code_generation_lite",
        hub_files=("test6.jsonl",),
        revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        files=("livecodebench/test6.jsonl", "code_generation_lite/test6.jsonl"),
    ),
    # The tag v6; releases 6 to 1; the window of August 2024 to January 2025.
    items=(175, 1055, 880, 713, 612, 511, 400, 279),
    identify=lambda row: str(pick(row, "question_id")),
    messages=_livecodebench,
    gold=_tests("public_test_cases"),
    grader="livecodebench",
    sampling=Sampling(max_new_tokens=32768, samples=8),
    licence="hub card: cc; problems of AtCoder, LeetCode and Codeforces",
    aliases=("lcb", "livecodebench_v6", "lcb_v6"),
    describe=window,
    tally=tally,
    note="version tag v6 alone: 175 problems of January to April 2025. Papers also call release_v6 "
    "(1055), 454 or the window 25.02-25.05 LCB v6: compare windows and counts",
)

HUMANEVAL = Benchmark(
    name="humaneval",
    family="code",
    title="HumanEval",
    source=Source(
        hub="openai/openai_humaneval",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        files=("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl", "HumanEval.jsonl.gz"),
    ),
    items=(164,),
    identify=lambda row: str(pick(row, "task_id")),
    messages=lambda row: user(
        "Complete the Python function below. Answer with the whole function, its imports and "
        f"helpers included, in one block.\n\n```python\n{str(pick(row, 'prompt')).strip()}\n```"
    ),
    gold=lambda row: str(row.get("canonical_solution") or _tests("test")(row)),
    grader="humaneval",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4096),
    licence="MIT",
)

LEETCODE = Benchmark(
    name="leetcode",
    family="code",
    title="LeetCode (functional, 200)",
    source=Source(
        files=("leetcode_functional/leetcode.json", "rllm/data/test/code/leetcode.json"),
        repeats=True,
    ),
    items=(200,),
    identify=lambda row: text_id(str(pick(row, "problem"))),
    messages=lambda row: user(str(pick(row, "problem"))),
    gold=lambda row: str(row.get("solutions") or _tests("tests")(row)),
    grader="leetcode",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8192),
    licence="MIT copy (agentica-project/rllm); problems of LeetCode",
    note="15 of the 200 problems are there twice; both are asked, as one cluster",
)

CODEFORCES = Benchmark(
    name="codeforces",
    family="code",
    title="Codeforces (stdin, 408)",
    source=Source(
        files=("codeforces_stdin/codeforces.json", "rllm/data/test/code/codeforces.json"),
    ),
    items=(408,),
    identify=lambda row: text_id(str(pick(row, "problem"))),
    messages=lambda row: user(f"{_TASK}\n\n{str(pick(row, 'problem')).strip()}\n\n{_STDIN}"),
    gold=_tests("tests"),
    grader="codeforces",
    sampling=Sampling(max_new_tokens=32768, samples=8),
    licence="MIT copy (agentica-project/rllm); problems of Codeforces",
    note="compared as text: a problem with several right outputs knows only one of them",
)

CODE: tuple[Benchmark, ...] = (LIVECODEBENCH, HUMANEVAL, LEETCODE, CODEFORCES)
