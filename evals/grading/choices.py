r"""The option that a response chooses: the sound extraction of a letter.

A letter counts where the response says that it is the answer: alone, in a box, after "the answer
is", as an enumerator in front ("B. 5 cm"), or as the only option in the last sentence. Words are
no letters: the "I" of "I'm sorry" and the "A" of "A dramatic scene" choose nothing. Two letters
where one is asked for are no answer.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Mapping, Sequence

from evals.grading.arithmetic import Value, evaluate
from evals.grading.statements import bare, passages
from reopold.answers.extract import boxed
from reopold.config import ConfigError

LETTERS = string.ascii_uppercase

#: Characters; a longer response is not an option by itself.
_WHOLE = 1000

#: What may follow an "A" or "I" that is a letter; before other words they are words themselves.
_CONNECTIVES = re.compile(
    "as|and|because|since|with|which|where|when|for|if|is|or|given|based|due|but|so|therefore|thus"
    "|from|not|by|in|on|option|choice|would|can|instead"
)
_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
#: A letter that is said to be it; "point A" is none.
_NAMED = re.compile(
    r"(?:^|[:,]|\b(?:is|are|be|so|hence|thus|therefore|option|choice|answer|choose|select|pick|or|and))"
    r"\s*([A-Z])(?![\w'’\-])",
)
#: A mark of an option, where a text holds nothing but them.
_MARK = re.compile(r"(?<![A-Z0-9])[A-Z0-9](?![A-Z0-9])")
_LEADING = re.compile(
    r"(?:option|choice|letter|answer)?\s*(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])(?![\w'’\-]))", re.I
)
_ENUMERATOR = re.compile(r"\s*[*<]*(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])\s*[.):>*\n])")
_ANOTHER = re.compile(
    r"[)\]]?\s*(?:,|/|&|\band\b|\bor\b)\s*(?:option|choice)?\s*[(\[]?([A-Z])(?!\w)"
)
_UNIT = re.compile(r"(?<=[\d}])\s*(?:°|\^\{?\\circ\}?|\\?%|[^\W\d_][^\d]*)$")
_LABEL = re.compile(r"^\s*(?:option|choice|answer)\s*[:.]?\s*", re.IGNORECASE)


_LISTED = re.compile(r"\(([A-J])\)\s*(.*?)(?=\s*[,;]?\s*\([A-J]\)|$)", re.DOTALL)


def listed_options(question: str) -> dict[str, str]:
    """The options that a question lists as "(A) ... (B) ..."; empty if it lists none."""
    found = {letter: text.strip() for letter, text in _LISTED.findall(question)}
    return found if len(found) > 1 and list(found) == sorted(found) else {}


def option_list(value: object) -> list[str]:
    """Options as published: a list, the Python text of one (the hub's MMMU), or none.

    Raises:
        ConfigError: they are something else.
    """
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) and value else value
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ConfigError(f"the options are no list: {str(value)[:80]}") from error
    if not parsed:
        return []
    if not isinstance(parsed, list | tuple):
        raise ConfigError(f"the options are no list: {str(value)[:80]}")
    return [str(option) for option in parsed]


def options_by_letter(options: Sequence[str]) -> dict[str, str]:
    return dict(zip(LETTERS, map(str, options), strict=False))


def chosen_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a response chooses; None if it chooses none or several.

    Args:
        options: letter -> text of the option; empty texts match nothing.
    """
    if len(text) <= _WHOLE and (whole := _whole(text, options)) is not None:
        return whole
    *stated, last = passages(text)
    for passage in stated:
        for read in (_exact, _leading, _by_text):
            if (found := read(passage, options)) is not None:
                return found
    if boxed(text) is not None:  # what it answers is no option; a word beside the box is no answer
        return None
    first = _first(text[:_WHOLE], options)
    return first if first is not None or _ENUMERATOR.match(last) else _only(last, options)


def letter_set(text: str, letters: str) -> frozenset[str]:
    """The letters that a response chooses where several may be right ("A, C"); empty if none."""
    *stated, last = passages(text)
    for passage in (text[: _WHOLE + 1], *stated):
        plain = _LABEL.sub("", bare(passage))
        found = frozenset(_MARK.findall(plain.upper())) if _is_list(plain) else frozenset()
        found = found or (_letters_of(plain, letters) if passage in stated else found)
        if found & frozenset(letters):
            return found & frozenset(letters)
    return _letters_of(bare(last), letters)


def _is_list(plain: str) -> bool:
    """Whether a text is letters and what joins them: "A C", "a, c", "(A) and (C)"."""
    mark = r"(?:[(\[][A-Za-z0-9][)\]]|[A-Z0-9])"
    small = r"[(\[]?[A-Za-z0-9][)\]]?"
    joined = r"\s*(?:,?\s*\band\b|[,;&/])\s*"
    return any(
        re.fullmatch(pattern, plain)
        for pattern in (rf"{small}(?:{joined}{small})*", rf"{mark}(?:(?:{joined}|\s){mark})*")
    )


def _letters_of(passage: str, letters: str) -> frozenset[str]:
    bracketed = {letter.upper() for letter in _BRACKETED.findall(passage)}
    found = bracketed or set(re.findall(r"(?<![\w'’\-])[A-Z0-9](?![\w'’\-])", passage))
    words = {letter for letter in found & {"A", "I"} if _is_word(letter, passage)}
    return frozenset(found - words) & frozenset(letters)


def _is_word(letter: str, passage: str) -> bool:
    """Whether every lone A or I of a passage is an article or a pronoun."""
    followers = re.findall(rf"(?<![\w'’(\-]){letter}(?=[\s)\].,;:]|$)\s*(\S*)", passage)
    return bool(followers) and all(_follows_word(follower) for follower in followers)


def _follows_word(follower: str) -> bool:
    word = re.sub("['’]", "", follower.strip(",.;:()"))
    return word.isalpha() and word.islower() and _CONNECTIVES.fullmatch(word) is None


def _whole(text: str, options: Mapping[str, str]) -> str | None:
    """A response that is nothing but a letter, or the text of one option."""
    plain = _LABEL.sub("", bare(text)).strip("()[]. ")
    if (exact := _exact(text, options)) is not None:
        return exact
    if len(plain) == 1 and plain.upper() in options:
        return plain.upper()
    return _same_text(text, options)


def _exact(text: str, options: Mapping[str, str]) -> str | None:
    """The option that a text is, word for word: "(b)" where that is the text of option D."""
    wanted = text.strip().rstrip(".")
    named = [letter for letter, option in options.items() if option == wanted and len(option) > 1]
    return named[0] if len(named) == 1 else None


def _same_text(text: str, options: Mapping[str, str]) -> str | None:
    """The option with that text (the first where two are the same), else with that number."""
    key = _key(text)
    named = [letter for letter, option in options.items() if option and _key(option) == key]
    if not key or named:
        return named[0] if key and len({options[letter] for letter in named}) == 1 else None
    value = evaluate(text.strip(" $.\"'"))
    if value is None:
        return None
    named = [letter for letter, option in options.items() if _value(option) == value]
    return named[0] if len(named) == 1 else None


def _value(option: str) -> Value | None:
    """The number of an option, its unit left out: answers often leave it out too."""
    return evaluate(_UNIT.sub("", option.strip(" $.")))


def _key(text: str) -> str:
    return re.sub(r"\s+", "", bare(text)).casefold()


def _leading(passage: str, options: Mapping[str, str]) -> str | None:
    plain = bare(passage)
    found = _LEADING.match(plain)
    if found is None:
        return None
    letter = _letter(found)
    rest = plain[found.end() :]
    if letter not in options or (found[2] and not found[2].isupper()):
        return None
    if found[2] in ("A", "I") and rest[:1].isspace() and _follows_word(rest.split()[0]):
        return None
    another = _ANOTHER.match(rest)
    return None if another and another[1] in options and another[1] != letter else letter


def _by_text(passage: str, options: Mapping[str, str]) -> str | None:
    """The option whose text a passage is, or else begins with (the longest of them)."""
    if (same := _same_text(passage, options)) is not None:
        return same
    key = " ".join(bare(passage).casefold().split())
    begun = [
        (len(start), letter)
        for letter, option in options.items()
        if (start := " ".join(bare(option).casefold().split()))
        and re.match(rf"{re.escape(start)}(?![\w.]|\s*[-+*/^=])", key)
    ]
    longest = max(begun, default=(0, ""))
    return longest[1] if [size for size, _ in begun].count(longest[0]) == 1 else None


def _first(text: str, options: Mapping[str, str]) -> str | None:
    """An enumerator or an option's text, then punctuation, that the response begins with; not
    where other lines begin with other letters, which lists the options."""
    found = _ENUMERATOR.match(text)
    if found is not None:
        letter = _letter(found)
        others = {
            _letter(other) for line in text.splitlines() if (other := _ENUMERATOR.match(line))
        }
        return letter if letter in options and others == {letter} else None
    opening = re.match(r"\s*([^.,;:!?\n]{1,80})[.,;:!?\n](?!\S)", text)
    return _same_text(opening[1], options) if opening else None


def _letter(found: re.Match[str]) -> str:
    return (found[1] or found[2]).upper()


def _only(sentence: str, options: Mapping[str, str]) -> str | None:
    """The only option that a sentence names, by letter or else by text."""
    plain = bare(sentence)
    bracketed = {letter.upper() for letter in _BRACKETED.findall(plain)} & set(options)
    lone = {
        letter
        for letter in _NAMED.findall(plain)
        if letter in options and not (letter in "AI" and _is_word(letter, plain))
    }
    for found in (bracketed, lone):
        if found:
            return found.pop() if len(found) == 1 else None
    return _named(plain, options)


def _named(sentence: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text a sentence contains; one within another's does not count."""
    words = " ".join(sentence.casefold().split())
    spans = [
        (found.start(), found.end(), letter)
        for letter, option in options.items()
        if (text := " ".join(bare(option).casefold().split()))
        for found in re.finditer(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", words)
    ]
    outer = {
        letter
        for start, end, letter in spans
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in spans)
    }
    return outer.pop() if len(outer) == 1 else None
