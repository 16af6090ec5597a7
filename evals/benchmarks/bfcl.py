"""Rows of the Berkeley Function Calling Leaderboard, v4: categories, prompts, golds, files.

Rows are those of bfcl_eval/data (ShishirPatil/gorilla): `id`, `question` (a list of turns, each a
list of messages) and `function` (JSON schemas), with the possible answers under `ground_truth`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from evals.benchmarks.base import Row, pick
from reopold.config import ConfigError

#: Single-turn categories -> number of published items.
CATEGORIES: dict[str, int] = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
#: Names of version 3.
_OLD = {"simple": "simple_python", "java": "simple_java", "javascript": "simple_javascript"}
_ELSEWHERE = ("multi_turn", "memory", "web_search", "format_sensitivity")


def bfcl_category(row: Row) -> str:
    """The category, from the field `category` or `test_category` or else from the id.

    Raises:
        ConfigError: there is none, or it is not one of the single-turn categories.
    """
    name = row.get("category") or row.get("test_category")
    if not name:
        name = str(pick(row, "id")).partition(":")[0].rpartition("_")[0]
    name = _OLD.get(name, name)
    if name in CATEGORIES:
        return str(name)
    if str(name).startswith(_ELSEWHERE):
        raise ConfigError(
            f"BFCL category '{name}' is not supported: only the single-turn categories are, for "
            "multi-turn, memory, web search and format sensitivity need the leaderboard's own "
            "tools and prompts"
        )
    raise ConfigError(
        f"record '{row.get('id')}' is of no BFCL category (got '{name}'); they are: "
        f"{', '.join(CATEGORIES)}"
    )


def bfcl_language(category: str) -> Literal["python", "java", "javascript"]:
    """The language that a response's calls are written in."""
    if category == "simple_java":
        return "java"
    return "javascript" if category == "simple_javascript" else "python"


def bfcl_functions(row: Row) -> list[dict[str, Any]]:
    """The functions that may be called.

    Raises:
        ConfigError: the row has none, or one without name, parameters or types.
    """
    functions = pick(row, "function")
    functions = [functions] if isinstance(functions, dict) else functions
    if not isinstance(functions, list) or not all(_is_function(item) for item in functions):
        raise ConfigError(
            f"record '{row.get('id')}': 'function' must be a list of objects with 'name' and "
            "'parameters', every parameter with a 'type'"
        )
    return functions


def _is_function(item: Any) -> bool:
    if not isinstance(item, dict) or "name" not in item:
        return False
    parameters = item.get("parameters")
    if not isinstance(parameters, dict):
        return False
    properties = parameters.get("properties", {})
    return isinstance(properties, dict) and all(
        isinstance(schema, dict) and "type" in schema for schema in properties.values()
    )


def bfcl_answers(row: Row) -> list[dict[str, dict[str, list[Any]]]]:
    """The possible answers, one object of a function and its parameters' values for each call.

    They are under `ground_truth` or `possible_answer`, by themselves or in a record of their own.

    Raises:
        ConfigError: there are none, or not in that form.
    """
    answers = pick(row, "ground_truth", "possible_answer")
    if isinstance(answers, dict) and "ground_truth" in answers:
        answers = answers["ground_truth"]
    answers = [answers] if isinstance(answers, dict) else answers
    if not isinstance(answers, list) or not answers or not all(map(_is_answer, answers)):
        raise ConfigError(
            f"record '{row.get('id')}': 'ground_truth' must be a list of objects "
            '{"function": {"parameter": [values]}}'
        )
    return answers


def _is_answer(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and len(item) == 1
        and all(isinstance(possible, dict) for possible in item.values())
        and all(isinstance(values, list) for values in next(iter(item.values())).values())
    )


def bfcl_gold(row: Row) -> str:
    """What is right, for people to read."""
    category = bfcl_category(row)
    if category.endswith("irrelevance"):
        return "no call"
    if category.endswith("relevance"):
        return "any call"
    return json.dumps(bfcl_answers(row), ensure_ascii=False)


_SYSTEM = """\
You answer by calling functions. For the question below, write the function call or calls that \
fulfil it. If none of the functions fits, or the question does not say what a function needs to \
know, say so instead of calling one.

Write the calls, and nothing besides them, in this form:
[first_function(first_parameter=value, second_parameter=value), second_function(parameter=value)]

These are the functions, in JSON:
"""
_HINTS = {"python": "Python 3", "java": "Java 8 SDK", "javascript": "JavaScript"}


def bfcl_messages(row: Row) -> list[dict[str, str]]:
    """The chat of the leaderboard's prompting mode: what to do, the functions, the question.

    Java and JavaScript parameters are described as text in the syntax of the language, as the
    leaderboard does (`_func_doc_language_specific_pre_processing` in bfcl_eval/utils.py). The
    wording is our own. A system message of the question follows ours in the same message.
    """
    language = bfcl_language(bfcl_category(row))
    functions = [_described(function, language) for function in bfcl_functions(row)]
    system = _SYSTEM + json.dumps(functions, indent=4)
    try:
        turn = [{"role": m["role"], "content": m["content"]} for m in pick(row, "question")[0]]
    except (TypeError, KeyError, IndexError) as error:
        raise ConfigError(
            f"record '{row.get('id')}': 'question' must be a list of turns, each a list of messages"
        ) from error
    if turn and turn[0]["role"] == "system":
        system += "\n\n" + turn.pop(0)["content"]
    return [{"role": "system", "content": system}, *turn]


def _described(function: dict[str, Any], language: str) -> dict[str, Any]:
    function = deepcopy(function)
    hint = f" The function is written in {_HINTS[language]} syntax."
    function["description"] = function.get("description", "") + hint
    if language == "python":
        return function
    name = _HINTS[language].split()[0]
    for schema in function["parameters"].get("properties", {}).values():
        kind, text = schema["type"], schema.get("description", "")
        text += f" A {name} {'object of any type' if kind == 'any' else kind}, written as a string."
        items = schema.pop("items", None)
        if items:
            text += f" Its elements are {items.get('type')}, not written as strings."
        members = schema.pop("properties", None)
        if members:
            text += f" Its entries, not written as strings, are: {json.dumps(members)}"
        schema.update(description=text, type="string")
    return function


def load_bfcl(folder: Path, categories: Sequence[str] = ()) -> list[Row]:
    """The rows of `BFCL_v4_<category>.json` files (JSON Lines) with their possible answers.

    Args:
        folder: the published folder, with its subfolder `possible_answer`.
        categories: those to load; empty loads every single-turn one that is there.

    Raises:
        ConfigError: a file is missing or no JSON Lines, or an item has no possible answers.
    """
    wanted = list(categories) or [c for c in CATEGORIES if _file(folder, c).is_file()]
    if not wanted:
        raise ConfigError(f"{folder} has no files BFCL_v4_<category>.json")
    rows: list[Row] = []
    for category in wanted:
        if category not in CATEGORIES:
            raise ConfigError(f"no BFCL category '{category}'; they are: {', '.join(CATEGORIES)}")
        questions = _read(_file(folder, category))
        rows += (
            questions
            if category.endswith("relevance")
            else merge_answers(questions, _read(_file(folder / "possible_answer", category)))
        )
    return rows


def merge_answers(questions: Sequence[Row], answers: Sequence[Row]) -> list[Row]:
    """The questions, each with the `ground_truth` of the answer of the same id.

    Raises:
        ConfigError: a question has no answer.
    """
    known = {answer.get("id"): answer.get("ground_truth") for answer in answers}
    lost = [str(question.get("id")) for question in questions if question.get("id") not in known]
    if lost:
        raise ConfigError(f"no possible answers for BFCL items {', '.join(lost[:5])}")
    return [{**question, "ground_truth": known[question["id"]]} for question in questions]


def _file(folder: Path, category: str) -> Path:
    return folder / f"BFCL_v4_{category}.json"


def _read(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON Lines: {error}") from error
