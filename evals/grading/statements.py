r"""Where a response says what its answer is, by rule: no model is asked.

The sound rules of the visual benchmarks read a letter or a number off these passages. A passage
that names none, or more than one, gives no answer: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reopold.answers.extract import boxed

#: Characters of a response's end in which statements are looked for, and of a passage; a response
#: of nothing but statements must not take long.
_TAIL, _PASSAGE = 20_000, 1000
_STATEMENTS = 8

_STATEMENT = re.compile(
    r"(?:(?:\banswers?|\b(?:correct|right|best|final|appropriate|chosen)\s+(?:\w+\s+)?"
    r"(?:options?|choices?|solution|result|value))[\s*_>\"']*"
    r"(?:(?:to|for|of|that|which|in|from)\s[^\n]{0,300}?)??"
    r"(?:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|be)\b|[:=])"
    r"(?:\s+(?:likely|probably|therefore|thus|clearly|:))*"
    r"|\bI\s+(?:choose|pick|select)\b|\bis\b(?=\s+(?:option|choice)\s+[(\[]?[A-J]\b))[\s*_:>]*",
    re.IGNORECASE,
)
#: A sentence ends with its mark, not at the point of "A. 5" or of a number.
_SENTENCE_END = re.compile(r"(?<![\s(][A-Z])(?<!^[A-Z])[.!?](?=[\s*\"')\]]*(?:\s|$))|\n")
_COURTESY = re.compile(
    r"(?:i hope|let me know|do you (?:have|want|need)|is there anything|feel free|please let)", re.I
)
_REFUSAL = re.compile(
    r"\b(?:impossible|cannot|can['’]?t|unable|not\s+(?:possible|provided|enough|clear))\b", re.I
)
_WRAPPING = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|boxed|mbox|fbox|bf|rm)\b\s*|\\[()\[\]]|[*$`\"“”{}<>]"
)
_NUMBER = re.compile(
    r"(?<![\w.,^])(?:(?<=[\d)])\s*)?[-+−]?\s?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)|(?=\.\d))"
    r"(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\d^])"
)
_VERB = re.compile(
    r"(?:[=≈:]|\b(?:is|are|was|were|be|equals?|equal to|approximately|about|get|gives?(?:\s+us)?"
    r"|of)\b|~)"
    r"[\s*$\\(]*",
    re.IGNORECASE,
)


def passages(text: str) -> Iterator[str]:
    """Passages that state the answer, the most binding first: the last box, what follows "the
    answer is" from the last such words back, the last sentence."""
    box = boxed(text)
    if box is not None:
        yield box[:_PASSAGE]
    tail = text[-_TAIL:]
    for end in [found.end() for found in _STATEMENT.finditer(tail)][: -_STATEMENTS - 1 : -1]:
        yield first_sentence(tail[end : end + _PASSAGE])
    yield last_sentence(tail[-_PASSAGE:])


def first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    return (text[: end.start()] if end else text).strip()


def last_sentence(text: str) -> str:
    """The last one that is no courtesy ("I hope this helps!") and has a letter or a digit."""
    start, sentences = 0, []
    for end in _SENTENCE_END.finditer(text):
        sentences.append(text[start : end.start()])
        start = end.end()
    sentences.append(text[start:])
    for sentence in reversed(sentences):
        sentence = sentence.strip()
        if re.search(r"\w", sentence) and not _COURTESY.match(sentence):
            return sentence
    return ""


def bare(text: str) -> str:
    """A passage without markup, quotation marks and the punctuation around it."""
    return _WRAPPING.sub("", text).strip().rstrip(".,;:!? ").strip()


def stated_number(text: str) -> str | None:
    """The number that a response gives as its answer, without commas and units; None if it gives
    none or several."""
    if len(text) <= 60 and (whole := number_in(text)) is not None:
        return whole
    *stated, last = passages(text)
    for passage in stated:
        if (found := _leading_number(passage) or number_in(passage)) is not None:
            return found
    return None if _REFUSAL.search(last) else number_in(last)


def _leading_number(passage: str) -> str | None:
    """The number that a statement begins with: "is 1982 with an income of $931,441"."""
    found = _NUMBER.match(bare(passage).replace("{,}", ","))
    rest = "" if found is None else bare(passage).replace("{,}", ",")[found.end() :]
    if found is None or not any(c.isdigit() for c in found[0]) or not re.match(r"\s+[a-z]", rest):
        return None
    return _digits(found[0])


def number_in(passage: str) -> str | None:
    """The only number of a passage, else the one in bold, else the one after its last verb or
    equals sign."""
    bold = re.findall(r"\*\*(.+?)\*\*", passage)
    if len(bold) == 1 and len(numbers := _numbers(bold[0])) == 1:
        return numbers[0]
    plain = bare(passage).replace("{,}", ",")
    numbers = _numbers(plain)
    if len(numbers) == 1:
        return numbers[0]
    verbs = list(_VERB.finditer(plain))
    for verb in reversed(verbs):
        found = _NUMBER.match(plain, verb.end())
        if found and any(char.isdigit() for char in found[0]):
            return _digits(found[0])
    return None


def _numbers(text: str) -> list[str]:
    found = (match[0] for match in _NUMBER.finditer(text))
    return list(dict.fromkeys(_digits(one) for one in found if any(c.isdigit() for c in one)))


def _digits(text: str) -> str:
    return re.sub(r"[\s,$€£+]", "", text.replace("−", "-"))
