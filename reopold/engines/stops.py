"""Stop strings on token ids: a response ends with the token that completes one.

A string may be cut into tokens in many ways, and the token that completes it may reach beyond it:
so it is looked for in the text of the last ids, not as a sequence of ids. Every engine ends a
response by this one rule, whatever its own server makes of stop strings. Special tokens are part of
the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from reopold.rollouts import FinishReason

#: Stands in decoded text for bytes that are not (yet) a character.
BROKEN = "\ufffd"
#: Ids beyond the bytes of a string that are read with it: the first text of a window may lack a
#: space, or the beginning of a character.
MARGIN = 4


class StopStrings:
    """Finds where a response is to end.

    Which ids can complete a string at all is worked out once for a tokenizer and its strings, so
    that few tokens of a response cost more than a look into a set.

    Args:
        tokenizer: fast tokenizer of the model.
        strings: none of them empty.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self.candidates = completing_ids(tokenizer, self.strings)
        """Ids whose text holds a string's end; no other id completes one."""
        self.window = MARGIN + max((len(string.encode()) for string in self.strings), default=0)

    def completes(self, ids: Sequence[int]) -> bool:
        """Whether the last of these response ids completes a stop string."""
        if not ids or ids[-1] not in self.candidates:
            return False
        tail = list(ids[-self.window :])
        text = decode(self.tokenizer, tail)
        before = len(decode(self.tokenizer, tail[:-1]).rstrip(BROKEN))
        return any(text.rfind(string) + len(string) > before for string in self._in(text))

    def end(self, ids: Sequence[int], after: int = 0) -> int | None:
        """Length of the response up to and with the first id that completes one; None if none.

        Args:
            after: ids at the beginning that are known to complete none.
        """
        places = (n for n, id_ in enumerate(ids[after:], after + 1) if id_ in self.candidates)
        return next((n for n in places if self.completes(ids[max(0, n - self.window) : n])), None)

    def _in(self, text: str) -> list[str]:
        return [string for string in self.strings if string in text]


def response_end(
    ids: Sequence[int], stops: Collection[int], limit: int, strings: StopStrings | None = None
) -> tuple[int, FinishReason]:
    """Length of a response within what was sampled for its row, and why it ended there."""
    sampled = ids[:limit]
    ends = [place + 1 for place, token in enumerate(sampled) if token in stops][:1]
    if strings is not None and (end := strings.end(sampled)) is not None:
        ends.append(end)
    return (min(ends), "stop") if ends else (limit, "length")


@lru_cache(maxsize=32)
def completing_ids(tokenizer: Any, strings: tuple[str, ...]) -> frozenset[int]:
    """Ids whose text contains one of the strings or begins with the end of one.

    An id that begins in the middle of a character counts for every string that is not plain ASCII.
    """
    if not strings:
        return frozenset()
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    first = len(decode(tokenizer, [anchor]))
    texts = tokenizer.backend_tokenizer.decode_batch(
        [[anchor, token] for token in range(len(tokenizer))], skip_special_tokens=False
    )
    ends = tuple({string[i:] for string in strings for i in range(1, len(string))})
    if not all(string.isascii() for string in strings):
        ends = (*ends, BROKEN)
    return frozenset(
        token
        for token, text in enumerate(text[first:] for text in texts)
        if text.startswith(ends) or any(string in text for string in strings)
    )


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some ids, special tokens and all."""
    text: str = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    return text
