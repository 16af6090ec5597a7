"""How calls and observations stand between a model's tokens, in sampled and given dialogues alike.

What the model sampled is never decoded and tokenised again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reopold.config import ConfigError
from reopold.environments import StyleName, find_environment
from reopold.rollouts import FinishReason, Rollout

#: Begins an observation in the fenced style (ToRA, ToRL, Qwen2.5-Math).
MARK = "```output"


@dataclass(frozen=True)
class Turn:
    """What the model sampled between two observations."""

    ids: list[int]
    """The token that ended it included. Of a :data:`MARK` that the model began, the ids that spell
    it, or none of it where the last of them reaches beyond."""
    text: str
    """What the environment is told: without the mark."""
    finish_reason: FinishReason
    """stop: at EOS or at a :data:`MARK`."""
    lead: str = ""
    """Text before the mark that shared a token with it."""
    marked: bool = False
    """Whether the ids end with the mark."""


class Style(Protocol):
    stop_strings: tuple[str, ...]
    """End a turn as EOS does."""

    def turn(self, rollout: Rollout) -> Turn: ...

    def join(self, turn: Turn, observation: str) -> tuple[list[int], list[int]]:
        """The turn's ids as they stay where the dialogue goes on (the first of them, maybe all),
        and those of the observation."""
        ...

    def given(self, message: str) -> list[int]:
        """The ids of a given message that an observation follows, as the model should say it."""
        ...


class ToolCalls:
    """Observations are messages of the role `tool`, as the chat template renders them.

    Raises:
        ConfigError: the template does not render such messages.
    """

    stop_strings: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if "42" not in self._after_answer("42"):
            raise ConfigError(
                "the chat template does not show messages of the role 'tool': dialogues with tool "
                "calls need a template that does, or an environment in the fenced style"
            )

    def turn(self, rollout: Rollout) -> Turn:
        text = decode(self.tokenizer, rollout.response_ids)
        return Turn(rollout.response_ids, text, rollout.finish_reason)

    def join(self, turn: Turn, observation: str) -> tuple[list[int], list[int]]:
        """After the turn stands what the template renders after an assistant's message.

        The model's own end of turn is the first of it. Where the template ends turns otherwise
        than the model did, the template's end takes its place.
        """
        text = self._after_answer(observation)
        suffix: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if suffix[0] == turn.ids[-1]:
            return turn.ids, suffix[1:]
        return turn.ids[:-1], suffix

    def given(self, message: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(message, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def _after_answer(self, observation: str) -> str:
        """The template's text from the end of an assistant's message to the next one's start."""
        answer = "(the assistant's message)"
        roles = (("user", "(the question)"), ("assistant", answer), ("tool", observation))
        chat = [{"role": role, "content": content} for role, content in roles]
        try:
            text = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template of the checkpoint's own may raise
            raise ConfigError(f"the chat template refuses messages of a tool: {error}") from error
        _, found, after = str(text).rpartition(answer)
        if not found:
            raise ConfigError("the chat template does not show the assistant's messages")
        return after


class Fenced:
    """Observations are plain text in the model's own turn, between :data:`MARK` and a fence.

    A turn ends where the model itself has said the mark; what it goes on to imagine is dropped. The
    mark stays the model's own, so that a student learns to stop there, except where its last token
    reaches beyond it: then the environment says it.
    """

    stop_strings: tuple[str, ...] = (MARK,)

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def turn(self, rollout: Rollout) -> Turn:
        ids = rollout.response_ids
        text = decode(self.tokenizer, ids)
        place = text.find(MARK)
        if place < 0:
            return Turn(ids, text, rollout.finish_reason)
        end = self._length(ids, place + len(MARK), bisect_left)
        if decode(self.tokenizer, ids[:end]) == text[: place + len(MARK)]:
            return Turn(ids[:end], text[:place], "stop", marked=True)
        # The longest run of whole tokens that ends before the mark.
        kept = self._length(ids, place, bisect_right) - 1
        lead = text[len(decode(self.tokenizer, ids[:kept])) : place]
        return Turn(ids[:kept], text[:place], "stop", lead)

    def _length(self, ids: Sequence[int], characters: int, bisect: Callable[..., int]) -> int:
        lengths = range(len(ids) + 1)
        return bisect(lengths, characters, key=lambda n: len(decode(self.tokenizer, ids[:n])))

    def join(self, turn: Turn, observation: str) -> tuple[list[int], list[int]]:
        """The observation on lines of its own, fenced where the environment did not fence it; the
        model's EOS, if it gave one, makes way."""
        ids, lead = turn.ids, turn.lead
        block = observation if observation.startswith(MARK) else f"{MARK}\n{observation}\n```"
        if turn.marked:
            block = block.removeprefix(MARK)
        elif ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
            lead = "" if turn.text.endswith("\n") else "\n"
        return ids, self.tokenizer.encode(f"{lead}{block}\n", add_special_tokens=False)

    def given(self, message: str) -> list[int]:
        text = message if message.endswith("\n") else f"{message}\n"
        ids: list[int] = self.tokenizer.encode(f"{text}{MARK}", add_special_tokens=False)
        return ids


STYLES: dict[StyleName, Callable[[Any], Style]] = {"tool_call": ToolCalls, "fenced": Fenced}


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some ids, without special tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def answer_text(message: str, environment: str) -> str:
    """What a model's last message says, in a dialogue with this environment: without the mark that
    may end it."""
    if environment and find_environment(environment).style == "fenced":
        return message.partition(MARK)[0]
    return message


def given_dialogue(
    tokenizer: Any, style: StyleName | None, prompt_ids: list[int], messages: Sequence[str]
) -> Rollout:
    """A given response as a rollout, observations marked as such, without log-probs.

    Args:
        messages: the assistant's and the environment's in turn, an assistant's first and last.
        style: of the dialogue; a single message needs none.
    """
    ids: list[int] = []
    observed: list[bool] = []
    if len(messages) > 1:
        assert style is not None  # the prompts' reader refuses dialogues without an environment
        way = STYLES[style](tokenizer)
    for message, observation in zip(messages[:-1:2], messages[1::2], strict=True):
        said = way.turn(Rollout(prompt_ids, way.given(message), [], "stop"))
        kept, shown = way.join(said, observation)
        ids += kept + shown
        observed += [False] * len(kept) + [True] * len(shown)
    ids += [*tokenizer.encode(messages[-1], add_special_tokens=False), tokenizer.eos_token_id]
    observed += [False] * (len(ids) - len(observed))
    return Rollout(prompt_ids, ids, [], "stop", observed=observed if True in observed else [])
