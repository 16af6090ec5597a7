"""The tests of code benchmarks, decoded without running anything that is in them."""

from __future__ import annotations

import ast
import base64
import binascii
import json
import pickletools
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evals.benchmarks.base import Row, pick
from reopold.config import ConfigError

#: Of one problem's hidden tests, unpacked.
MAX_BYTES = 1 << 30

_HOW = "private_test_cases must be JSON, or JSON pickled, compressed and in base64"

#: What a pickled text consists of; anything else could build or call something.
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_HARMLESS = {"PROTO", "FRAME", "STOP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}


@dataclass(frozen=True)
class Case:
    input: str
    output: str


@dataclass(frozen=True)
class Suite:
    """A LiveCodeBench problem's tests in order: the public ones, then the hidden ones."""

    tests: tuple[Case, ...]
    function: str | None
    """None: a program that reads stdin and writes stdout."""


def livecodebench_suite(row: Row) -> Suite:
    """The tests of a row of the published schema.

    Raises:
        ConfigError: a field is missing or cannot be decoded, or there is no test.
    """
    tests = [
        *_cases(pick(row, "public_test_cases"), "public_test_cases"),
        *_cases(row.get("private_test_cases") or [], "private_test_cases"),
    ]
    if not tests:
        raise ConfigError(f"{_name(row)} has no tests: nothing could be graded")
    metadata = row.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = _json(metadata, "metadata")
    if not isinstance(metadata, dict):
        raise ConfigError(f"{_name(row)}: metadata must be an object such as {{'func_name': 'f'}}")
    function = metadata.get("func_name") or _starter_function(row)
    return Suite(tuple(tests), function)


def _starter_function(row: Row) -> str | None:
    """The method that the starter code asks for, where the metadata have lost its name."""
    found = re.search(r"def\s+(\w+)\s*\(\s*self\b", str(row.get("starter_code") or ""))
    return found[1] if found else None


def stdin_tests(row: Row) -> tuple[Case, ...]:
    """The `tests` of a Codeforces row: a list of {input, output}.

    Raises:
        ConfigError: there are none, or they look otherwise.
    """
    tests = _cases(pick(row, "tests"), "tests")
    if not tests:
        raise ConfigError(f"{_name(row)} has no tests: nothing could be graded")
    return tests


def _name(row: Row) -> str:
    return f"problem {row.get('question_id', row.get('id', '(no id)'))}"


def _cases(raw: Any, where: str) -> tuple[Case, ...]:
    if isinstance(raw, str):
        return _decoded(raw, where)
    if not isinstance(raw, list):
        raise ConfigError(f"{where} must be a list of {{input, output}}, or text that holds one")
    for case in raw:
        fields = [case.get("input"), case.get("output")] if isinstance(case, dict) else [None]
        if not all(isinstance(value, str) for value in fields):
            raise ConfigError(f"{where}: a test must have the texts 'input' and 'output'")
    return tuple(Case(case["input"], case["output"]) for case in raw)


@lru_cache(maxsize=4)  # the samples of a problem are graded one after another
def _decoded(text: str, where: str) -> tuple[Case, ...]:
    try:
        raw = json.loads(text)
    except ValueError:
        raw = _json(_unpacked(text), where)
    if not isinstance(raw, list):
        raise ConfigError(f"{where} must hold a list of {{input, output}}")
    return _cases(raw, where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error


def _unpacked(text: str) -> str:
    """The text in a base64 of a zlib stream of a pickled text.

    Raises:
        ConfigError: it is something else, or larger than :data:`MAX_BYTES`.
    """
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text.encode(), validate=True), MAX_BYTES)
    except (binascii.Error, UnicodeEncodeError, zlib.error) as error:
        raise ConfigError(f"{_HOW}: {error}") from error
    if unzip.unconsumed_tail:
        raise ConfigError(f"private_test_cases hold more than {MAX_BYTES} bytes")
    if not unzip.eof:
        raise ConfigError(f"{_HOW}: the compressed stream is cut off")
    return _pickled_text(data)


def _pickled_text(data: bytes) -> str:
    """The text that a pickle of nothing but one text holds. The pickle is read, never run.

    Raises:
        ConfigError: it holds anything else.
    """
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _TEXTS:
                texts.append(str(argument))
            elif opcode.name not in _HARMLESS:
                raise ConfigError(
                    f"private_test_cases hold a pickle of more than a text ({opcode.name}): "
                    "loading it could run code"
                )
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_HOW}: {error}") from error
    if len(texts) != 1:
        raise ConfigError(f"{_HOW}: the pickle holds {len(texts)} texts")
    return texts[0]


@dataclass(frozen=True)
class Calls:
    """The functional tests of a LeetCode row."""

    candidate: str
    """Expression of what is tested: `Solution().fn`."""
    calls: tuple[str, ...]
    """Expressions in `candidate`."""
    expected: tuple[Any, ...]


def leetcode_calls(row: Row) -> Calls:
    """The `tests.functional` of a row, taken apart, so that expected values can stay outside.

    Raises:
        ConfigError: it is not a `check(candidate)` of lines `assert candidate(...) == literal`
            that is then called with one expression.
    """
    tests = pick(row, "tests")
    text = tests.get("functional") if isinstance(tests, dict) else tests
    try:
        body = ast.parse(str(text)).body
        definition, run = body
        assert isinstance(definition, ast.FunctionDef)
        assert isinstance(run, ast.Expr) and isinstance(run.value, ast.Call)
        (candidate,) = run.value.args
        pairs = [_assertion(statement) for statement in definition.body]
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{_name(row)}: tests.functional must define check(candidate) with lines "
            "`assert candidate(...) == literal` and then call it"
        ) from error
    calls, expected = zip(*pairs, strict=True)
    return Calls(ast.unparse(candidate), calls, expected)


def _assertion(statement: ast.stmt) -> tuple[str, Any]:
    """The call and the expected value of `assert candidate(...) == literal`."""
    assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
    comparison = statement.test
    (operator,), (literal,) = comparison.ops, comparison.comparators
    assert isinstance(operator, ast.Eq) and isinstance(comparison.left, ast.Call)
    return ast.unparse(comparison.left), ast.literal_eval(literal)
