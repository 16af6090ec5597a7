"""BFCL's rule on its own data: every published answer is right, every change of it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks.base import Row
from evals.benchmarks.bfcl import load_bfcl
from evals.grading.bfcl import grade_bfcl
from evals.grading.verdict import Context, Rule

RULES: tuple[Rule, ...] = ("sound", "official")
#: No response can be right: they ask for a parameter that the function does not have, or for one
#: without any possible value.
UNANSWERABLE = {"live_simple_106-63-0", "live_simple_112-68-0"}
#: (function, arguments) of each call.
Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def rows(benchmarks_dir: Path) -> list[Row]:
    folder = benchmarks_dir / "bfcl_v4"
    if not folder.is_dir():
        pytest.skip(f"BFCL data are absent: {folder}")
    return load_bfcl(folder)


def first(values: list[Any]) -> Any:
    """The first possible value; of an object, each key's first."""
    return unfold(next((value for value in values if value != ""), ""))


def unfold(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: first(v) for k, v in value.items() if any(item != "" for item in v)}
    return [unfold(item) for item in value] if isinstance(value, list) else value


def gold_calls(row: Row) -> Calls:
    """Two answers name a parameter that may be left out and that their function does not have."""
    calls = []
    for answer in row["ground_truth"]:
        ((name, possible),) = answer.items()
        known = next(f for f in row["function"] if f["name"] == name)["parameters"]["properties"]
        given = {k: first(v) for k, v in possible.items() if k in known and v != [""]}
        calls.append((name, given))
    return calls


def source(calls: Calls) -> str:
    texts = [f"{name}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for name, a in calls]
    return "[" + ", ".join(texts) + "]"


def stored(calls: Calls) -> str:
    return json.dumps([{name.replace(".", "_"): json.dumps(a)} for name, a in calls])


def tagged(calls: Calls) -> str:
    blocks = [json.dumps({"name": name, "arguments": a}) for name, a in calls]
    return "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)


def with_answers(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "ground_truth" in row and row["id"] not in UNANSWERABLE]


def test_unanswerable_items_are_two(rows: list[Row]) -> None:
    def impossible(row: Row, name: str, possible: dict[str, list[Any]]) -> bool:
        known = next(f for f in row["function"] if f["name"] == name)["parameters"]["properties"]
        return any(
            "" not in values and (k not in known or not values) for k, values in possible.items()
        )

    found = {
        row["id"]
        for row in rows
        for answer in row.get("ground_truth", [])
        for name, possible in answer.items()
        if impossible(row, name, possible)
    }
    assert found == UNANSWERABLE


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("write", [source, stored, tagged])
def test_every_published_answer_is_right(
    rows: list[Row], rule: Rule, write: Callable[[Calls], str]
) -> None:
    answered = with_answers(rows)
    assert len(answered) == 400 + 200 + 200 + 200 + 258 + 16 + 24 - len(UNANSWERABLE)
    wrong = [r["id"] for r in answered if not right(write(gold_calls(r)), r, rule)]
    assert not wrong


def right(response: str, row: Row, rule: Rule = "sound") -> bool:
    found = grade_bfcl(response, row, Context(rule))
    assert (found.status == "ok") == found.correct
    return found.correct


def test_order_of_calls_does_not_matter_to_right_or_vote(rows: list[Row]) -> None:
    for row in with_answers(rows):
        calls = gold_calls(row)
        forth, back = (grade_bfcl(source(order), row, Context()) for order in (calls, calls[::-1]))
        assert forth == back


def drop_required(row: Row, name: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    function = next(f for f in row["function"] if f["name"] == name)
    for required in function["parameters"]["required"]:
        yield {k: v for k, v in arguments.items() if k != required}


def other_value(row: Row, name: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    possible = next(a[name] for a in row["ground_truth"] if name in a)
    for key, value in arguments.items():
        if isinstance(value, bool):
            changed: Any = not value
            if changed in possible[key]:
                continue
        elif isinstance(value, (int, float)):
            changed = value + 1000003
        elif isinstance(value, str):
            changed = value + " zzz"
        elif isinstance(value, list):
            changed = [*value, *(value[:1] or ["zzz"])]
        elif isinstance(value, dict):
            changed = {**value, "zzz": 1}
        else:  # None, of a parameter of any type
            changed = 1000003
        yield {**arguments, key: changed}


def other_type(row: Row, name: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in arguments.items():
        yield {**arguments, key: [[value]] if not isinstance(value, list) else 2.5}


def unknown_parameter(row: Row, name: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**arguments, "no_such_parameter": 1}


@pytest.mark.parametrize("change", [drop_required, other_value, other_type, unknown_parameter])
def test_a_changed_argument_is_wrong(rows: list[Row], change: Callable[..., Any]) -> None:
    changes = 0
    for row in with_answers(rows):
        calls = gold_calls(row)
        name, arguments = calls[0]
        for changed in change(row, name, arguments):
            changes += 1
            text = source([(name, changed), *calls[1:]])
            assert not any(right(text, row, rule) for rule in RULES), text
    assert changes > 1000


def test_another_name_or_number_of_calls_is_wrong(rows: list[Row]) -> None:
    for row in with_answers(rows):
        calls = gold_calls(row)
        (name, arguments), rest = calls[0], calls[1:]
        for changed in (
            [(name + "_2", arguments), *rest],
            [(name[:-1], arguments), *rest],
            [*calls, calls[0]],
            rest,
        ):
            assert not any(right(source(changed), row, rule) for rule in RULES), source(changed)


def test_underscores_stand_for_dots_only_in_function_calling(rows: list[Row]) -> None:
    row = next(r for r in rows if r["id"] == "simple_python_1")  # math.factorial(number=5)
    calls: Calls = [("math_factorial", {"number": 5})]
    assert right(stored(calls), row) and right(tagged(calls), row)
    assert not right(source(calls), row)


@pytest.mark.parametrize("rule", RULES)
def test_relevance(rows: list[Row], rule: Rule) -> None:
    call, none = "[f(a=1)]", "None of the functions can answer this."
    seen = set()
    for row in rows:
        if "relevance" not in row["id"]:
            continue
        wants_call = row["id"].startswith("live_relevance")
        seen.add(wants_call)
        assert right(call, row, rule) == wants_call
        assert right(none, row, rule) == right("[]", row, rule) == (not wants_call)
        assert grade_bfcl(none, row, Context(rule)).extracted is None
        assert grade_bfcl("[]", row, Context(rule)).extracted is None
    assert seen == {True, False}


def test_verdicts_say_what_was_read(rows: list[Row]) -> None:
    row = next(r for r in rows if r["id"] == "simple_python_1")
    found = grade_bfcl("```[math.factorial(number=5)]```", row, Context())
    assert (found.correct, found.extracted) == (True, '[{"math.factorial": {"number": 5}}]')
    missed = grade_bfcl("It is 120.", row, Context())
    assert (missed.correct, missed.extracted, missed.status) == (False, None, "no_answer")


@pytest.mark.parametrize("field", ["ground_truth", "possible_answer"])
@pytest.mark.parametrize("record", [False, True])
def test_answers_are_found_where_copies_keep_them(field: str, record: bool) -> None:
    answers: Any = [{"f": {"a": [1]}}]
    row: Row = {"id": "simple_0", "function": FUNCTION}  # version 3's name, one bare function
    row[field] = {"id": "simple_0", "ground_truth": answers} if record else answers
    assert right("f(a=1)", row) and not right("f(a=2)", row)


FUNCTION = {
    "name": "f",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
    },
}


def test_only_official_takes_plus_for_minus() -> None:
    row: Row = {"id": "simple_python_0", "function": [FUNCTION]}
    row["ground_truth"] = [{"f": {"a": [5]}}]
    assert right("[f(a=+5)]", row, "sound") and not right("[f(a=+5)]", row, "official")
