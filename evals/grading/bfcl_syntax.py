"""BFCL: a function call in Java or JavaScript, every argument as its source text.

The rule is that of bfcl_eval/model_handler/parser/{java,js}_parser.py: only the first call counts,
arguments are written `name=value`, and an argument given twice makes the call unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tree_sitter import Language, Node


class Undecodable(Exception):
    """The text holds no function calls in the form that was asked for."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[Any, Any]
    """Java and JavaScript: every value as its source text. What has no name has the key None."""


#: Java nodes whose text is taken as it stands.
_VERBATIM = {"identifier", "class_literal", "type_identifier", "method_invocation"}
_QUOTED = {"string_literal", "character_literal"}


@cache
def _grammar(name: str) -> Language:
    import tree_sitter
    import tree_sitter_java
    import tree_sitter_javascript

    module: Any = {"java": tree_sitter_java, "javascript": tree_sitter_javascript}[name]
    return tree_sitter.Language(module.language())


def _parse(source: bytes, language: str) -> Node:
    """The root of the syntax tree; a parser of its own, since threads may not share one.

    Raises:
        Undecodable: a syntax error. A token that the parser could supply by itself is none.
    """
    import tree_sitter

    root = tree_sitter.Parser(_grammar(language)).parse(source).root_node
    if "ERROR" in str(root):
        raise Undecodable(f"no {language}")
    return root


class _Arguments:
    """Arguments by name; those without a name share the key None."""

    def __init__(self) -> None:
        self.values: dict[str | None, str] = {}

    def add(self, name: str | None, value: str) -> None:
        if name in self.values:
            raise Undecodable("an argument is given twice")
        self.values[name] = value


def javascript_call(source: str) -> Call:
    """The first call that is a statement.

    Raises:
        Undecodable: there is none, or it cannot be read.
    """
    for statement in _parse(source.encode(), "javascript").children:
        if statement.type != "expression_statement":
            continue
        for expression in statement.children:
            if expression.type == "call_expression":
                function, arguments = expression.children[:2]
                return Call(_source(function), _javascript_arguments(arguments))
    raise Undecodable("no call")


def _source(node: Node) -> str:
    return (node.text or b"").decode()


def _javascript_arguments(node: Node) -> dict[Any, Any]:
    found = _Arguments()
    for child in node.children:
        if child.type == "assignment_expression":
            value = _source(child.children[2])
            if value[:1] == value[-1:] and value[:1] in ('"', "'"):
                value = value[1:-1]
            found.add(_source(child.children[0]), value)
        elif child.type in {"identifier", "true"}:
            found.add(None, _source(child))
    return found.values


def java_call(source: str, official: bool) -> Call:
    """The first method invocation.

    Args:
        official: cut its text by byte offsets, as the authors do: after a character that is not
            ASCII every text is shifted.

    Raises:
        Undecodable: there is none, or it cannot be read.
    """
    encoded = source.encode()
    return _Java(source if official else encoded).first_call(_parse(encoded, "java"))


class _Java:
    def __init__(self, source: str | bytes) -> None:
        self._text = source

    def text(self, node: Node | None) -> str:
        if node is None:
            raise Undecodable("a part is missing")
        part = self._text[node.start_byte : node.end_byte]
        return part if isinstance(part, str) else part.decode()

    def first_call(self, root: Node) -> Call:
        pending = [root]
        while pending:
            node = pending.pop()
            if node.type == "method_invocation":
                return self._call(node)
            pending.extend(reversed(node.children))
        raise Undecodable("no call")

    def _call(self, node: Node) -> Call:
        name = self.text(node.child_by_field_name("name"))
        receiver = node.child_by_field_name("object")
        if receiver is not None:
            name = f"{self.text(receiver)}.{name}"
        found = _Arguments()
        arguments = node.child_by_field_name("arguments")
        for child in [] if arguments is None else arguments.children:
            if child.type == "assignment_expression":
                found.add(self.text(child.children[0]), self.value(child.children[2], top=True))
            elif child.type in {"identifier", "class_literal"}:
                found.add(None, self.text(child))
        return Call(name, found.values)

    def value(self, node: Node | None, top: bool = False) -> str:
        """A value's text, built from its parts: white space between them is lost, and so is the
        body of an anonymous class. A literal that is the whole value (`top`) loses its quotes."""
        if node is None:
            raise Undecodable("a part is missing")
        if node.type in _QUOTED:
            return self.text(node)[1:-1] if top else self.text(node)
        if node.type in _VERBATIM:
            return self.text(node)
        if node.type == "array_creation_expression":
            kind = self.value(node.child_by_field_name("type"))
            return f"new {kind}[]{self.value(node.child_by_field_name('value'))}"
        if node.type == "object_creation_expression":
            kind = self.value(node.child_by_field_name("type"))
            given = node.child_by_field_name("arguments")
            parts = [] if given is None else [c for c in given.children if c.type not in ",()"]
            return f"new {kind}({', '.join(self.value(part) for part in parts)})"
        if node.children:
            return "".join(self.value(child) for child in node.children)
        return self.text(node)
