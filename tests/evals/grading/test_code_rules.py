"""Extraction, decoding of tests and comparison: nothing here runs a program."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import sys
import zlib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evals.grading import code_tests
from evals.grading.code_compare import Unequal, decode_value, same_output, same_value
from evals.grading.code_extract import between_last_fences, humaneval_program, last_program
from evals.grading.code_inside import one_function, plain
from evals.grading.code_runs import HEADER, with_header
from evals.grading.code_tests import leetcode_calls, livecodebench_suite, stdin_tests
from reopold.config import ConfigError

CASES = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def row(**fields: Any) -> dict[str, Any]:
    return {
        "question_id": "abc1_a",
        "public_test_cases": json.dumps(CASES),
        "private_test_cases": "[]",
        "metadata": "{}",
        **fields,
    }


class TestExtraction:
    @pytest.mark.parametrize(
        ("response", "program"),
        [
            ("```python\na\n```", "a"),
            ("```python\na\n```\ntext\n```\nb\nc\n```\nend", "b\nc"),
            ("```python\na\n```\nand then ```inline``` code", ""),  # that line is the last fence
            ("```python\na\n```\n\n```python\nb", ""),  # between them is an empty line
            ("```python\na", ""),
            ("a = 1", ""),
            ("x ```y``` z", ""),
            ("   ```py\n  a\n   ``` ", "  a"),
        ],
    )
    def test_livecodebench_takes_what_is_between_the_last_two_lines_with_a_fence(
        self, response: str, program: str
    ) -> None:
        assert between_last_fences(response) == program

    @given(st.lists(st.sampled_from(["```", "```python", "a", " ```x", "", "b ``` c"]), max_size=9))
    def test_livecodebench_by_another_way(self, lines: list[str]) -> None:
        marked = [line for line in lines if "```" in line]
        found = between_last_fences("\n".join(lines))
        if len(marked) < 2:
            assert found == ""
        else:
            inner: list[str] = []
            seen = 0
            for line in reversed(lines):
                seen += "```" in line
                if seen == 2:
                    break
                if seen == 1 and "```" not in line:
                    inner.insert(0, line)
            assert found == "\n".join(inner)

    def test_the_last_closed_block_is_the_program(self) -> None:
        assert last_program("```python\na\n```\n```py\nb\n```\n```\nnever closed") == "b\n"
        assert last_program("  ```\n  a\n  ```") == "  a\n"

    def test_without_fences_only_python_is_a_program(self) -> None:
        assert last_program("print(1)") == "print(1)"
        assert last_program("The answer is 1.") == ""
        assert last_program("  \n") == ""
        assert last_program("```python\nprint(1)") == ""


class TestHumanEvalExtraction:
    PROMPT = 'def twice(x):\n    """Double."""\n'

    def test_a_completion_continues_the_prompt_as_it_stands(self) -> None:
        assert humaneval_program("    return 2 * x", self.PROMPT, "twice") == (
            self.PROMPT + "    return 2 * x"
        )

    def test_the_last_block_that_defines_the_function_is_taken(self) -> None:
        first = "```python\ndef twice(x):\n    return x\n```\n"
        second = "```python\ndef twice(x):\n    return x + x\n```\n"
        usage = "```python\nprint(twice(2))\n```\n"
        found = humaneval_program(first + "Better:\n" + second + usage, self.PROMPT, "twice")
        assert found == self.PROMPT + "\ndef twice(x):\n    return x + x\n"

    def test_another_name_that_only_begins_so_is_no_definition(self) -> None:
        response = "```python\ndef twice_more(x):\n    return 4 * x\n```"
        assert humaneval_program(response, self.PROMPT, "twice") == self.PROMPT + response

    def test_an_indented_block_is_the_body(self) -> None:
        response = "Here:\n```python\n    return 2 * x\n```\n"
        found = humaneval_program(response, self.PROMPT, "twice")
        assert found == self.PROMPT + "    return 2 * x\n"


class TestComparison:
    @pytest.mark.parametrize(
        ("output", "expected", "same"),
        [
            ("1\n2\n", "1\n2", True),
            ("\n\n 1  \n 2\t\r\n", "1\n2", True),
            ("1\n\n2", "1\n2", False),  # lines within count
            ("1 2", "1\n2", False),
            ("1", "1\n2", False),
            ("1\n2", "1", False),
            ("", "", True),
            ("", "0", False),
            ("YES", "yes", False),
            ("a  b", "a b", False),  # words are compared as one line
            ("1  2", "1 2", True),  # numbers token by token
            ("1.0 2.50", "1 2.5", True),
            ("1e3", "1000", True),
            ("0.1", "0.10000000001", False),  # exactly: there is no tolerance
            ("50000000000000001", "50000000000000000", False),
            ("007", "7", True),
            ("+5", "5", True),
            ("nan", "NaN", False),
            ("nan", "nan", True),  # the same line
            ("sNaN", "snan", False),
            ("inf", "Infinity", True),
            ("1 x", "1.0 x", False),  # one word spoils the line
            ("1 2 3", "1 2", False),
        ],
    )
    def test_lines_then_decimals(self, output: str, expected: str, same: bool) -> None:
        assert same_output(output, expected) is same

    @settings(max_examples=30)
    @given(st.lists(st.lists(st.decimals(allow_nan=False), min_size=1, max_size=4), max_size=5))
    def test_numbers_may_be_written_otherwise(self, table: list[list[Decimal]]) -> None:
        ours = "\n".join(" ".join(str(number) for number in line) for line in table)
        theirs = "\n".join("   ".join(f"{number:E}" for number in line) for line in table)
        assert same_output(ours, theirs)

    @given(st.text(), st.sampled_from(["\n", "  \n", "\r\n", ""]))
    def test_a_text_is_the_same_whatever_ends_it(self, text: str, end: str) -> None:
        assert same_output(text + end, text)

    def test_tuples_count_as_lists_outermost_alone(self) -> None:
        assert same_value((1, 2), [1, 2])
        assert not same_value([(1, 2)], [[1, 2]])
        assert not same_value((1, 2), [1, 2], tuples_are_lists=False)

    def test_python_equality_decides(self) -> None:
        assert same_value(True, 1) and same_value(2.0, 2) and not same_value("1", 1)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner, max_size=3)
        | st.frozensets(st.integers() | st.tuples(st.integers()), max_size=3)
    ),
    max_leaves=15,
)


class TestValues:
    @given(PLAIN)
    @example(10**5000)
    @example({(1, 2): {3}})
    @example(float("inf"))
    def test_a_value_survives_the_way_out_of_the_sandbox(self, value: Any) -> None:
        decoded = decode_value(json.loads(json.dumps(plain(value))))
        assert decoded == value and type(decoded) in (type(value), frozenset)

    def test_numbers_of_other_kinds_equal_what_they_equal(self) -> None:
        numpy = pytest.importorskip("numpy")
        for value, same in [
            (Fraction(6, 2), 3),
            (Decimal("0.5"), 0.5),
            (numpy.int64(7), 7),
            (numpy.float32(0.5), 0.5),
            (numpy.bool_(True), True),
        ]:
            assert decode_value(plain(value)) == same
        assert decode_value(plain(Decimal("0.1"))) != 0.1
        assert decode_value(plain(Fraction(1, 3))) != 1 / 3

    def test_an_object_equals_nothing(self) -> None:
        class Anything:
            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = None  # type: ignore[assignment]

        assert isinstance(decode_value(json.loads(json.dumps(plain(Anything())))), Unequal)

    @pytest.mark.parametrize(
        "forged",
        [None, 5, [], ["value"], ["value", [1]], ["integer", "z"], ["list", 3], ["dict", [1]],
         ["set", [["list", []]]], ["what", 1], {"kind": "value"}],
    )  # fmt: skip
    def test_a_forged_report_equals_nothing(self, forged: Any) -> None:
        assert isinstance(decode_value(forged), Unequal)


class TestDecoding:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_the_published_form_of_hidden_tests(self, protocol: int) -> None:
        text = json.dumps([{"input": "ä 3\n", "output": "4", "testtype": "stdin"}] * 300)
        hidden = packed(pickle.dumps(text, protocol))
        suite = livecodebench_suite(row(private_test_cases=hidden))
        assert len(suite.tests) == 301
        assert suite.tests[0].input == "1\n" and suite.tests[1].input == "ä 3\n"
        assert suite.function is None

    def test_lists_and_json_are_read_as_well(self) -> None:
        suite = livecodebench_suite(
            row(public_test_cases=CASES, private_test_cases=json.dumps(CASES * 2), metadata={})
        )
        assert len(suite.tests) == 3

    def test_the_function_comes_from_metadata(self) -> None:
        assert livecodebench_suite(row(metadata='{"func_name": "f"}')).function == "f"
        assert livecodebench_suite(row(metadata={"func_name": None})).function is None

    def test_a_pickle_that_calls_something_is_refused_and_not_run(self, tmp_path: Path) -> None:
        trace = tmp_path / "ran"

        class Harmful:
            def __reduce__(self) -> Any:
                return (trace.touch, ())

        with pytest.raises(ConfigError, match="could run code"):
            livecodebench_suite(row(private_test_cases=packed(pickle.dumps(Harmful()))))
        assert not trace.exists()

    @pytest.mark.parametrize("value", [["a"], b"[]", 5, None, {"a": 1}, ("[]", "[]")])
    def test_a_pickle_of_anything_but_a_text_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match="private_test_cases"):
            livecodebench_suite(row(private_test_cases=packed(pickle.dumps(value))))

    @pytest.mark.parametrize(
        "hidden",
        [
            "no base64 !",
            base64.b64encode(b"not compressed").decode(),
            base64.b64encode(zlib.compress(pickle.dumps("[]"))[:-3]).decode(),
            packed(pickle.dumps("not JSON")),
            packed(b"\x80\x04."),
            packed(b"\x80\x04\x8c\x02[]\x8c\x02[]."),  # two texts
            packed(pickle.dumps("[]")[:-1]),
            '{"input": "1"}',
            '[{"input": "1"}]',
            '[{"input": 1, "output": "2"}]',
            "[3]",
        ],
    )
    def test_other_faults_are_named(self, hidden: str) -> None:
        with pytest.raises(ConfigError, match="private_test_cases"):
            livecodebench_suite(row(private_test_cases=hidden))

    def test_unpacking_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden = packed(pickle.dumps(json.dumps([{"input": "0" * 5000, "output": ""}])))
        livecodebench_suite(row(private_test_cases=hidden))
        code_tests._decoded.cache_clear()
        monkeypatch.setattr(code_tests, "MAX_BYTES", 5000)
        with pytest.raises(ConfigError, match="more than 5000 bytes"):
            livecodebench_suite(row(private_test_cases=hidden))

    def test_a_row_without_tests_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="abc1_a has no tests"):
            livecodebench_suite(row(public_test_cases="[]"))
        with pytest.raises(ConfigError, match="public_test_cases"):
            livecodebench_suite({"question_id": "abc1_a"})
        with pytest.raises(ConfigError, match="no tests"):
            stdin_tests({"tests": []})

    @given(st.text())
    def test_every_text_is_read_from_its_pickle(self, text: str) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickletools.optimize(pickle.dumps(text, protocol))
            assert code_tests._pickled_text(data) == text


class TestLeetCodeTests:
    TESTS = "def check(candidate):\n    assert candidate(n = 3, s = 'a') == [1, -2]\n\n"

    def test_calls_and_expected_values_are_taken_apart(self) -> None:
        calls = leetcode_calls({"tests": {"functional": self.TESTS + "check(Solution().f)"}})
        assert calls.candidate == "Solution().f"
        assert calls.calls == ("candidate(n=3, s='a')",)
        assert calls.expected == ([1, -2],)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "check(Solution().f)",
            TESTS,
            TESTS + "check(Solution().f, 2)",
            "def check(candidate):\n    assert candidate(1) == len('x')\n\ncheck(f)",
            "def check(candidate):\n    assert candidate(1) > 3\n\ncheck(f)",
            "def check(candidate):\n    assert candidate(1)\n\ncheck(f)",
            "def check(candidate):\n    import os\n\ncheck(f)",
            "def check(",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"tests\.functional"):
            leetcode_calls({"tests": {"functional": text}})


class TestSources:
    def test_the_header_gives_the_usual_names(self) -> None:
        names: dict[str, Any] = {}
        before = sys.getrecursionlimit(), sys.get_int_max_str_digits()
        exec(HEADER, names)
        assert (sys.getrecursionlimit(), sys.get_int_max_str_digits()) == (50_000, 50_000)
        sys.setrecursionlimit(before[0])
        sys.set_int_max_str_digits(before[1])
        wanted = {"List", "Optional", "deque", "defaultdict", "Counter", "heappush", "bisect_left"}
        wanted |= {"sqrt", "inf", "gcd", "lru_cache", "cache", "reduce", "permutations", "mean"}
        wanted |= {"accumulate", "ascii_lowercase", "itemgetter", "StringIO", "randint", "loads"}
        assert wanted <= names.keys()
        # A module beats what it was star-imported for; the built-in pow beats that of math.
        assert names["bisect"].__name__ == "bisect" and names["copy"].__name__ == "copy"
        assert names["pow"](2, 3, 5) == 3 and names["open"] is open

    def test_future_imports_come_before_the_header(self) -> None:
        program = '"""Doc."""\nfrom __future__ import annotations\nx: Undefined = 1\n'
        source = with_header(program)
        assert source.startswith("from __future__ import annotations\n" + HEADER)
        assert source.count("__future__") == 1
        compile(source, "main.py", "exec")

    def test_a_program_that_cannot_be_parsed_is_left_as_it_is(self) -> None:
        assert with_header("def (") == HEADER + "def ("

    @pytest.mark.parametrize(
        ("program", "lines"),
        [
            (
                "import a\nx = 1\nif __name__ == '__main__':\n    import b\n    main()",
                ["import a", "import b", "def wrapped_function():", "    x = 1", "    main()"],
            ),
            (  # spelt otherwise, or not last: it stays a block that is never entered
                "if '__main__' == __name__:\n    main()",
                ["def wrapped_function():", "    if '__main__' == __name__:", "        main()"],
            ),
            (
                'if __name__ == "__main__":\n    main()\nx = 1',
                [
                    "def wrapped_function():",
                    "    if __name__ == '__main__':",
                    "        main()",
                    "    x = 1",
                ],
            ),
        ],
    )
    def test_a_program_as_one_function(self, program: str, lines: list[str]) -> None:
        assert one_function(program, "HEADER").split("\n") == ["HEADER", *lines]

    @given(st.booleans())
    def test_a_program_of_imports_alone_is_no_function(self, empty: bool) -> None:
        with pytest.raises(SyntaxError):
            compile(one_function("" if empty else "import a", ""), "x", "exec")
