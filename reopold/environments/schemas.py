"""Values against JSON schemas, as far as functions' arguments need them.

Of JSON Schema 2020-12: type, enum, properties, required, additionalProperties (true or false) and
items. A schema that asks for more is refused rather than half obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_CHECKED = {"type", "enum", "properties", "required", "additionalProperties", "items"}
_SILENT = {"description", "title", "default", "examples"}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises ValueError: the schema has a keyword, type or form that is not checked here."""
    if unknown := sorted(schema.keys() - _CHECKED - _SILENT):
        raise ValueError(f"the schema asks for {', '.join(unknown)}, which is not checked")
    if schema.get("type", "object") not in list(_TYPES):
        raise ValueError(f"the schema's type must be one of {', '.join(_TYPES)}")
    if not isinstance(schema.get("additionalProperties", True), bool):
        raise ValueError("the schema's additionalProperties must be true or false")
    inner = [*schema.get("properties", {}).values()]
    for each in inner + ([schema["items"]] if "items" in schema else []):
        check_schema(each)


def fault_of(value: Any, schema: Mapping[str, Any], name: str) -> str:
    """What is wrong with a value, in words for the one who wrote it; empty if nothing is.

    Args:
        name: what the value is called.
    """
    wanted = schema.get("type")
    if wanted is not None and not _is(value, wanted):
        return f"{name} must be of type {wanted}"
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        return f"{name} must be one of {', '.join(map(repr, schema['enum']))}"
    faults: list[str] = []
    if isinstance(value, dict):
        faults += _properties(value, schema)
    elif isinstance(value, list) and "items" in schema:
        faults += [fault_of(item, schema["items"], f"{name}[{i}]") for i, item in enumerate(value)]
    return next(filter(None, faults), "")


def _properties(value: dict[str, Any], schema: Mapping[str, Any]) -> list[str]:
    known: Mapping[str, Any] = schema.get("properties", {})
    faults = [f"'{key}' is missing" for key in schema.get("required", ()) if key not in value]
    if not schema.get("additionalProperties", True):
        faults += [f"there is no '{key[:64]}'" for key in value if key not in known]
    return faults + [
        fault_of(value[key], each, f"'{key}'") for key, each in known.items() if key in value
    ]


def _is(value: Any, wanted: str) -> bool:
    """A bool is no number; 2.0 is an integer."""
    if isinstance(value, bool):
        return wanted == "boolean"
    whole = wanted == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, _TYPES[wanted])


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
