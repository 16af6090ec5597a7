"""Reading rows of published files: JSON lines, JSON lists and JSON objects keyed by id."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evals.benchmarks.base import Row
from reopold.config import ConfigError


class Item(NamedTuple):
    where: str
    """For messages: the file and the line, or the place in a list."""
    row: Row
    folder: Path | None = None
    """That of the file; paths of images are relative to it or nearby."""


def read_items(path: Path) -> list[Item]:
    """Rows of a `.jsonl`, `.json` (a list, an object of rows by id, or JSON lines) or `.gz` file.

    Rows of an object get their key as `id` unless they have one.

    Raises:
        ConfigError: the file cannot be read or is empty, or a row (named by its line or place) is
            not JSON or no object.
    """
    text = read_text(path)
    found = _lines(path, text) if _is_lines(path, text) else _document(path, text)
    items = [Item(where, _row(where, value), path.parent) for where, value in found]
    if not items:
        raise ConfigError(f"{path} holds no problems")
    return items


def read_text(path: Path) -> str:
    """Raises ConfigError: the file is missing, unreadable, or no UTF-8."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no test problems at {path}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _is_lines(path: Path, text: str) -> bool:
    """Some `.json` files hold a row a line: they begin with a whole object and go on."""
    if ".json" not in path.suffixes:
        return True
    lines = (line for line in text.split("\n") if line.strip())
    first, second = next(lines, ""), next(lines, "")
    if not (first.startswith("{") and second):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also cuts at U+2028
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(where, line)


def _document(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if not text.strip():
        return
    document = _parse(str(path), text)
    if isinstance(document, list):
        for number, value in enumerate(document, start=1):
            yield f"{path}, item {number}", value
    elif isinstance(document, dict) and all(isinstance(v, dict) for v in document.values()):
        for key, value in document.items():
            yield f"{path}, key '{key}'", {"id": key} | value
    else:
        yield str(path), document


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # numbers of more than 4300 digits are one, too
        raise ConfigError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is not JSON that can be read: nested too deeply") from error


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: the line is no JSON object but of type {type(value).__name__}")
    return value
