"""Test problems: `{"id", "prompt": [one user message], "answer"}` a line of a local JSONL file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reopold.config import ConfigError


class Message(TypedDict):
    role: str
    content: str


class Record(TypedDict):
    """A problem as lm-eval and the graders see it."""

    id: str
    prompt: list[Message]
    answer: str


@dataclass(frozen=True)
class Problems:
    records: list[Record]
    digest: str
    """SHA-256 of the file."""


class _Question(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    #: lm-eval builds a prompt from one question; other roles would be lost without a word.
    role: Literal["user"]
    content: str


class _Line(BaseModel):
    """Fields beyond these (a worked solution, say) are none of the evaluation's business."""

    model_config = ConfigDict(strict=True)
    id: str = Field(min_length=1)
    prompt: list[_Question] = Field(min_length=1, max_length=1)
    answer: str = Field(min_length=1)


def load_problems(path: Path) -> Problems:
    """Read a test file.

    Raises:
        ConfigError: the file is missing, unreadable or empty, or a line (named by its number) is
            not JSON, lacks a field, is no single user message, or repeats an id.
    """
    try:
        raw = path.read_bytes()
        lines = raw.decode("utf-8").split("\n")  # splitlines also cuts at U+2028
    except FileNotFoundError as error:
        raise ConfigError(f"no test problems at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line, f"{path}, line {number}")
        if record["id"] in records:
            raise ConfigError(f"{path}, line {number}: id '{record['id']}' is there twice")
        records[record["id"]] = record
    if not records:
        raise ConfigError(f"{path} holds no problems")
    return Problems(list(records.values()), hashlib.sha256(raw).hexdigest())


def _parse(line: str, where: str) -> Record:
    try:
        problem = _Line.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{where}: {field or 'the line'}: {fault['msg']}") from error
    messages = [Message(role=turn.role, content=turn.content) for turn in problem.prompt]
    return Record(id=problem.id, prompt=messages, answer=problem.answer.strip())
