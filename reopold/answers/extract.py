"""Finding the answer in a response."""

from __future__ import annotations

import re

#: Characters. Longer answers are no answers: the longest gold of our benchmarks has 204, and the
#: time to parse an expression grows faster than its length.
MAX_ANSWER = 1000
#: Of a response, where boxes and where statements are looked for: its last characters.
_BOX_TAIL = 1_000_000
_STATEMENT_TAIL = 20_000

_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+(-?[0-9][0-9,]*(?:\.[0-9]+)?|[A-Za-z])(?!\w)")
#: What may stand between two boxes or formulas that are one answer together.
_BETWEEN = re.compile(
    r"(?:[\s$,;]|\\[()\[\],;]|\\q?quad|\b(?:and|or)\b|\\text\{\s*,?\s*(?:and|or)\s*\}){0,12}"
)

_STATEMENT = re.compile(
    r"\banswers?\b(?:\s+(?:to|for|of|in)\s[^.:\n]{0,80}?)?"
    r"[\s*_]*(?:\bis\b|\bare\b|=|:|\bshould\s+be\b)[\s*_:]*",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>(?:\\\$|[^$])+?)(?<!\\)\$|\\\[(?P<c>.+?)\\\]|\\\((?P<d>.+?)\\\)",
    re.DOTALL,
)
#: A statement ends with its sentence; a point within a number ends nothing.
_SENTENCE_END = re.compile(r"\.(?=\s|\*|$)|\n")
_LONE_LINE = re.compile(
    r"[\s*>]*(?:#### *)?"
    r"(?P<answer>\$\$?[^$=]+\$\$?|\\\[[^=]+?\\\]|\\\([^=]+?\\\)|[-+]?\$?[0-9][0-9.,/]*%?)[\s*.]*"
)
#: The whole response is its answer if it is one line no longer than this.
_BARE_RESPONSE = 100

#: What tools printed: not the model's words.
_OUTPUT = re.compile(
    r"```output\b.*?(?:```|\Z)"
    r"|<interpreter>.*?(?:</interpreter>|\Z)"
    r"|<llm-code-output>.*?(?:</llm-code-output>|\Z)"
    r"|<tool_response>.*?(?:</tool_response>|\Z)"
    r"|<\|execution\|>.*?(?:<\|endofblock\|>|\Z)",
    re.DOTALL,
)
_CODE = re.compile(
    r"```(?:python|py)\b.*?(?:```|\Z)|<code>.*?(?:</code>|\Z)|<llm-code>.*?(?:</llm-code>|\Z)"
    r"|<tool_call>.*?(?:</tool_call>|\Z)|<\|code\|>.*?(?:<\|endofblock\|>|\Z)",
    re.DOTALL,
)


def closing_words(response: str) -> str:
    """What the model says after the last output of a tool, without code; all that it says in a
    response that used none."""
    end = 0
    for output in _OUTPUT.finditer(response):
        end = output.end()
    return _CODE.sub("\n", response[end:])


def last_output(response: str) -> str | None:
    """What a tool printed last; None in a response that used none."""
    outputs = _OUTPUT.findall(response)
    if not outputs:
        return None
    return re.sub(r"```output|```|</?[\w|-]+>", "", outputs[-1]).strip()


def own_words(response: str) -> str:
    """The response without tools' outputs and without the code that was run."""
    return _CODE.sub("\n", _OUTPUT.sub("\n", response))


def boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{}` (or `\fbox{}`), outermost first; None without one.

    Boxes with nothing but "and", "or" or a comma between them are one answer, joined by commas.
    A box that is never closed was cut off and does not count.
    """
    text = text[-_BOX_TAIL:]
    boxes = _boxes(text)
    if not boxes:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else None
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[2] : group[0][0]]
        if len(between) > 40 or not _BETWEEN.fullmatch(between):
            break
        group.insert(0, box)
    contents = dict.fromkeys(text[start:end].strip() for _, start, end in _inner(text, group))
    return ", ".join(contents)


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start of the command, start of the content, end of the box) of outermost closed boxes."""
    boxes: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _BRACE.finditer(text):
        mark = token.group()
        if mark == "{":
            open_braces.append(None)
        elif mark == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None:
                while boxes and boxes[-1][0] > opened[0]:
                    boxes.pop()  # it lies within this one
                boxes.append((*opened, token.end()))
        elif mark.endswith("{") and len(mark) > 2:
            open_braces.append((token.start(), token.end()))
    return boxes


def _inner(text: str, boxes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Content bounds; of a box within a box, those of the inner one."""
    bounds = []
    for start, content, end in boxes:
        inner = _boxes(text[content : end - 1])
        if inner:
            last = inner[-1]
            bounds.append((start, content + last[1], content + last[2] - 1))
        else:
            bounds.append((start, content, end - 1))
    return bounds


def stated(text: str) -> str | None:
    """What the last "the answer is ..." or "Answer: ..." says; None without one."""
    text = text[-_STATEMENT_TAIL:]
    answer = None
    for statement in _STATEMENT.finditer(text):
        answer = _first_formulas(text[statement.end() :][: 2 * MAX_ANSWER]) or answer
    return answer


def _first_formulas(text: str) -> str | None:
    """The formulas that a text begins with; without one its first sentence."""
    formulas: list[str] = []
    end = 0
    for formula in _FORMULA.finditer(text):
        between = text[end : formula.start()]
        if len(between) > 40 or not _BETWEEN.fullmatch(between):
            break
        formulas.append(next(content for content in formula.groups() if content))
        end = formula.end()
    if formulas:
        # A percent sign behind the dollar belongs to the number.
        percent = r"\%" if re.match(r"\s*\\?%", text[end:]) else ""
        return ", ".join(formulas) + percent
    sentence_end = _SENTENCE_END.search(text)
    sentence = text[: sentence_end.start()] if sentence_end else text
    return sentence.strip(" *_:") or None


def lone_line(text: str) -> str | None:
    """The last line where it is nothing but a number or a formula that is no equation; a text
    of a single short line is its answer as it stands."""
    line = text.strip()
    if "\n" not in line and 0 < len(line) <= _BARE_RESPONSE:
        return line
    last = line[-2 * MAX_ANSWER :].splitlines()[-1:]
    match = _LONE_LINE.fullmatch(last[0]) if last else None
    return match["answer"] if match else None


def final_answer(response: str) -> str | None:
    r"""The answer that a response clearly gives; None if it gives none or one too long.

    In this order: the last `\boxed{}`, the last "answer is", a last line that is only a number or
    formula. It is looked for in what follows the last tool output, then in all that the model
    itself said. A number that merely comes last in a text is no answer.
    """
    closing = closing_words(response)
    words = own_words(response)
    answer = boxed(closing)
    if answer is None:
        answer = stated(closing)
    if answer is None:
        answer = boxed(words)
    if answer is None:
        answer = stated(words)
    if answer is None:
        answer = lone_line(closing)
    return answer if answer and len(answer) <= MAX_ANSWER else None
