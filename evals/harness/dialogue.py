"""Dialogues between an engine and an environment: many at once, turn by turn, on token ids.

What the model sampled is never decoded and tokenised again: a turn's prompt is the ids of the
prompt, of the turns before and of the observations between them.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

from reopold.config import ConfigError
from reopold.engines.base import SEED_LIMIT, Engine
from reopold.environments.base import Environment, Observation
from reopold.rollouts import FinishReason, Rollout, SamplingParams
from reopold.sandbox import SandboxFailure

#: Environments that act at the same time.
THREADS = 8

#: Begins an observation in the fenced style (ToRA, ToRL, Qwen2.5-Math).
MARK = "```output"


class DialogueRequest(NamedTuple):
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Turn:
    """What the model sampled between two observations."""

    ids: list[int]
    """The token that ended it included; without those from :data:`MARK` on."""
    text: str
    """What the environment is told."""
    finish_reason: FinishReason
    """stop: at EOS or at a :data:`MARK` that the model began."""
    lead: str = ""
    """Text before the mark that shared a token with it."""


@dataclass(frozen=True)
class Dialogue:
    """A finished dialogue."""

    prompt_ids: list[int]
    ids: list[int]
    """Everything after the prompt."""
    observed: list[bool]
    """Of each id: whether the environment said it, not the model."""
    text: str
    """All of it, without special tokens."""
    turns: list[Turn]
    finish_reason: Literal["stop", "length", "turns"]
    """stop: the last message was an answer. turns: it was a call, and no turn was left. length: a
    turn or an observation reached the budget of tokens."""
    calls: int
    failed_calls: int
    seconds: float
    """Wall-clock since all dialogues began."""
    error: str = ""
    """Why the environment broke: then the dialogue says nothing about the model."""

    @property
    def status(self) -> Literal["ok", "sandbox_failure"]:
        return "sandbox_failure" if self.error else "ok"

    @property
    def answer(self) -> str:
        """The model's last message: what a tool printed is no answer."""
        return self.turns[-1].text

    @property
    def tokens(self) -> int:
        """Those in `ids` that the model sampled."""
        return self.observed.count(False)


class Style(Protocol):
    """How observations stand between the model's tokens."""

    def turn(self, rollout: Rollout) -> Turn: ...

    def join(self, turn: Turn, observation: str) -> tuple[list[int], list[int]]:
        """The turn's ids as they stay where the dialogue goes on, and those of the observation."""
        ...


class ToolCalls:
    """Observations are messages of the role `tool`, as the chat template renders them.

    Raises:
        ConfigError: the template does not render such messages.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if "42" not in self._after_answer("42"):
            raise ConfigError(
                "the chat template does not show messages of the role 'tool': dialogues with tool "
                "calls need a template that does, or a benchmark in the fenced style"
            )

    def turn(self, rollout: Rollout) -> Turn:
        text = _decode(self.tokenizer, rollout.response_ids)
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

    A turn ends where the model itself begins the mark: what it goes on to imagine is dropped.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def turn(self, rollout: Rollout) -> Turn:
        ids = rollout.response_ids
        text = _decode(self.tokenizer, ids)
        place = text.find(MARK)
        if place < 0:
            return Turn(ids, text, rollout.finish_reason)
        # The longest run of whole tokens that ends before the mark.
        lengths = range(len(ids) + 1)
        kept = bisect_right(lengths, place, key=lambda n: len(_decode(self.tokenizer, ids[:n]))) - 1
        lead = text[len(_decode(self.tokenizer, ids[:kept])) : place]
        return Turn(ids[:kept], text[:place], "stop", lead)

    def join(self, turn: Turn, observation: str) -> tuple[list[int], list[int]]:
        """The observation on lines of its own, fenced where the environment did not fence it; the
        model's EOS, if it gave one, makes way."""
        ids, lead = turn.ids, turn.lead
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
            lead = "" if turn.text.endswith("\n") else "\n"
        block = observation if observation.startswith(MARK) else f"{MARK}\n{observation}\n```"
        return ids, self.tokenizer.encode(f"{lead}{block}\n", add_special_tokens=False)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


STYLES: dict[str, Callable[[Any], Style]] = {"tool_call": ToolCalls, "fenced": Fenced}


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a turn (from 0) of the dialogue with this seed."""
    digest = hashlib.sha256(f"{seed}/turn {turn}".encode()).digest()
    return int.from_bytes(digest[:8]) % SEED_LIMIT


def run_dialogues(
    engine: Engine,
    tokenizer: Any,
    requests: Sequence[DialogueRequest],
    params: SamplingParams,
    make_environment: Callable[[int], Environment],
    *,
    style: Literal["tool_call", "fenced"],
    max_turns: int,
    max_tokens: int,
    on_finished: Callable[[int, Dialogue], None] | None = None,
) -> list[Dialogue]:
    """Lead every dialogue to its end; a dialogue depends on its own prompt and seed alone.

    Args:
        params: of every turn; `max_new_tokens` bounds one turn.
        make_environment: the world of the request at this place, made when it is first needed and
            closed when its dialogue ends. It is called in threads.
        max_turns: messages of the model.
        max_tokens: of everything after the prompt, observations included, so that prompt and
            `max_tokens` together are the context that a model needs.
        on_finished: told of every dialogue as it ends, in whatever order, once at a time, in
            threads.

    Raises:
        ConfigError: the chat template knows no tool messages.
        EngineFailure, StopRequested: as the engine does; every environment is closed.
    """
    if max_turns < 1 or max_tokens < 1:
        raise ValueError(f"{max_turns} turns of {max_tokens} tokens leave no room for a message")
    table = _Table(
        tokenizer,
        STYLES[style](tokenizer),
        make_environment,
        max_turns,
        max_tokens,
        max(params.min_new_tokens, 1),
        on_finished,
    )
    dialogues = [_Running(table, place, request) for place, request in enumerate(requests)]
    with ExitStack() as closing:
        for dialogue in dialogues:
            closing.callback(dialogue.close)
        pool = closing.enter_context(ThreadPoolExecutor(THREADS))
        while live := [dialogue for dialogue in dialogues if dialogue.result is None]:
            _take_turns(engine, params, live, pool)
    return [dialogue.result for dialogue in dialogues if dialogue.result is not None]


def _take_turns(
    engine: Engine, params: SamplingParams, live: Sequence[_Running], pool: ThreadPoolExecutor
) -> None:
    """One turn of each; environments act while other turns are still sampled."""
    steps: list[Future[None]] = []

    def sampled(place: int, rollout: Rollout) -> None:
        steps.append(pool.submit(live[place].step, rollout))

    try:
        engine.generate(
            [dialogue.prompt_ids + dialogue.ids for dialogue in live],
            params,
            seeds=[turn_seed(dialogue.seed, len(dialogue.turns)) for dialogue in live],
            limits=[min(params.max_new_tokens, dialogue.room) for dialogue in live],
            on_finished=sampled,
        )
        for step in steps:
            step.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


@dataclass
class _Table:
    """What the dialogues share."""

    tokenizer: Any
    style: Style
    make_environment: Callable[[int], Environment]
    max_turns: int
    max_tokens: int
    least: int
    """Tokens that a turn must have room for."""
    on_finished: Callable[[int, Dialogue], None] | None
    started: float = field(default_factory=time.perf_counter)
    lock: Lock = field(default_factory=Lock)
    """Held by whoever uses the tokenizer or tells of a finished dialogue."""


class _Running:
    """A dialogue that goes on."""

    def __init__(self, table: _Table, place: int, request: DialogueRequest) -> None:
        self.table = table
        self.place = place
        self.prompt_ids = list(request.prompt_ids)
        self.seed = request.seed
        self.ids: list[int] = []
        self.observed: list[bool] = []
        self.turns: list[Turn] = []
        self.calls = self.failed = 0
        self.environment: Environment | None = None
        self.result: Dialogue | None = None

    @property
    def room(self) -> int:
        return self.table.max_tokens - len(self.ids)

    def step(self, rollout: Rollout) -> None:
        """Take what was sampled as the next turn, and the environment's word on it."""
        with self.table.lock:
            turn = self.table.style.turn(rollout)
        self.turns.append(turn)
        if turn.finish_reason == "length":
            self._add(turn.ids, observed=False)
            self._finish("length")
            return
        try:
            observation = self._act(turn.text)
        except SandboxFailure as error:
            self._add(turn.ids, observed=False)
            self._finish("stop", error=str(error) or "the sandbox broke")
            return
        self.calls += observation.calls
        self.failed += observation.failed
        self._go_on(turn, observation)

    def _act(self, message: str) -> Observation:
        if self.environment is None:
            self.environment = self.table.make_environment(self.place)
        return self.environment.act(message)

    def _go_on(self, turn: Turn, observation: Observation) -> None:
        last = len(self.turns) == self.table.max_turns
        if observation.done or last:
            self._add(turn.ids, observed=False)
            self._finish("stop" if observation.done else "turns")
            return
        with self.table.lock:
            kept, shown = self.table.style.join(turn, observation.text)
        if len(kept) + len(shown) + self.table.least > self.room:
            self._add(turn.ids, observed=False)
            self._finish("length")
            return
        self._add(kept, observed=False)
        self._add(shown, observed=True)

    def _add(self, ids: Sequence[int], *, observed: bool) -> None:
        self.ids += ids
        self.observed += [observed] * len(ids)

    def _finish(self, reason: Literal["stop", "length", "turns"], error: str = "") -> None:
        self.close()
        with self.table.lock:
            self.result = Dialogue(
                prompt_ids=self.prompt_ids,
                ids=self.ids,
                observed=self.observed,
                text=_decode(self.table.tokenizer, self.ids),
                turns=self.turns,
                finish_reason=reason,
                calls=self.calls,
                failed_calls=self.failed,
                seconds=time.perf_counter() - self.table.started,
                error=error,
            )
            if self.table.on_finished is not None:
                self.table.on_finished(self.place, self.result)

    def close(self) -> None:
        if self.environment is not None:
            self.environment.close()
