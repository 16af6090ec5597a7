"""Dialogues between an engine and an environment: many at once, turn by turn, on token ids.

A turn's prompt is the ids of the prompt, of the turns before and of the observations between them.
Training and evaluation lead their dialogues by this one code.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import Any, NamedTuple, TypeVar

from reopold.data.images import Image
from reopold.dialogue_styles import STYLES, Style, Turn, decode
from reopold.engines.base import SEED_LIMIT, Engine
from reopold.environments import StyleName
from reopold.environments.base import Environment, Observation
from reopold.rollouts import FinishReason, Rollout, SamplingParams
from reopold.sandbox import SandboxFailure
from reopold.stopping import ShouldStop, check, never

#: Environments that act at the same time.
THREADS = 8
#: Worlds that a dialogue may lose to a sandbox that broke; each new one is told what was said.
RETRIES = 2
#: Seconds between two looks at the clock and at whether to stop.
POLL = 0.05
#: Seconds for environments to close once a dialogue is given up.
CLOSE_SECONDS = 5.0

T = TypeVar("T")


class DialogueRequest(NamedTuple):
    prompt_ids: list[int]
    seed: int
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A finished dialogue."""

    rollout: Rollout
    """Its tokens. finish_reason stop: the last message was an answer; turns: it was a call, and no
    turn was left; length: a turn or an observation reached the budget of tokens; seconds: the
    environment used up its time."""
    text: str
    """All that stands after the prompt, without special tokens."""
    turns: list[Turn]
    seconds: float
    """Wall-clock since all dialogues began."""

    @property
    def answer(self) -> str:
        """The model's last message: what a tool printed is no answer."""
        return self.turns[-1].text


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
    style: StyleName,
    max_turns: int,
    max_tokens: int,
    tool_seconds: float,
    should_stop: ShouldStop = never,
    on_finished: Callable[[int, Dialogue], None] | None = None,
) -> list[Dialogue]:
    """Lead every dialogue to its end; a dialogue depends on its own prompt and seed alone.

    All that go on take a turn together, in their order: the same dialogues make the same batches.

    Args:
        params: of every turn; `max_new_tokens` bounds one turn.
        make_environment: the world of the request at this place, made when it is first needed and
            closed when its dialogue ends. One that broke is made anew and told all messages again.
        max_turns: messages of the model.
        max_tokens: of everything after the prompt, observations included, so that prompt and
            `max_tokens` together are the context that a model needs.
        tool_seconds: wall-clock within the environment of one dialogue. One that has not answered
            by then is left alone: its dialogue ends without it.
        on_finished: told of every dialogue as it ends, in whatever order, once at a time, in
            threads.

    Raises:
        ConfigError: the chat template knows no tool messages.
        EngineFailure, StopRequested: as the engine does; environments are closed.
    """
    if max_turns < 1 or max_tokens < 1:
        raise ValueError(f"{max_turns} turns of {max_tokens} tokens leave no room for a message")
    way = STYLES[style](tokenizer)
    params = replace(params, stop_strings=(*params.stop_strings, *way.stop_strings))
    table = _Table(
        tokenizer,
        way,
        make_environment,
        max_turns,
        max_tokens,
        max(params.min_new_tokens, 1),
        tool_seconds,
        on_finished,
    )
    dialogues = [_Running(table, place, request) for place, request in enumerate(requests)]
    try:
        while live := [dialogue for dialogue in dialogues if dialogue.result is None]:
            check(should_stop)
            _take_turns(engine, params, live, should_stop)
    finally:
        _close(dialogues)
    return [dialogue.result for dialogue in dialogues if dialogue.result is not None]


def _take_turns(
    engine: Engine, params: SamplingParams, live: Sequence[_Running], should_stop: ShouldStop
) -> None:
    """One turn of each; environments act while other turns are still sampled."""
    images = [dialogue.request.images for dialogue in live]
    engine.generate(
        [
            dialogue.request.prompt_ids + _read_again(dialogue.ids, engine.image_token_id)
            for dialogue in live
        ],
        params,
        seeds=[turn_seed(dialogue.request.seed, len(dialogue.turns)) for dialogue in live],
        limits=[min(params.max_new_tokens, dialogue.room) for dialogue in live],
        images=images if any(images) else None,
        on_finished=lambda place, rollout: live[place].hear(rollout),
    )
    for dialogue in live:
        while not dialogue.idle.wait(POLL):
            check(should_stop)
            for other in live:
                other.end_if_late()
    for dialogue in live:
        if dialogue.fault is not None:
            raise dialogue.fault


def _read_again(ids: list[int], image_token_id: int | None) -> list[int]:
    """What was said, as a model reads it: an image token in it asks for no image."""
    if image_token_id is None or image_token_id not in ids:
        return ids
    from reopold.vision import filler

    return [filler(image_token_id) if token == image_token_id else token for token in ids]


def _close(dialogues: Sequence[_Running]) -> None:
    """End every environment; one that does not return within :data:`CLOSE_SECONDS` is left."""
    for dialogue in dialogues:
        dialogue.inbox.put(None)
    until = time.perf_counter() + CLOSE_SECONDS
    for dialogue in dialogues:
        if dialogue.thread is not None and not dialogue.left:
            dialogue.thread.join(max(0.0, until - time.perf_counter()))


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
    tool_seconds: float
    on_finished: Callable[[int, Dialogue], None] | None
    started: float = field(default_factory=time.perf_counter)
    lock: Lock = field(default_factory=Lock)
    """Held by whoever uses the tokenizer or tells of a finished dialogue."""
    slots: Semaphore = field(default_factory=lambda: Semaphore(THREADS))


class _World:
    """A dialogue's environment, made anew when it breaks."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self.make = make
        self.environment: Environment | None = None
        self.told: list[str] = []

    def act(self, message: str) -> Observation:
        """Raises SandboxFailure: it broke more often than :data:`RETRIES` allow."""
        observation = self._ask(lambda environment: environment.act(message))
        self.told.append(message)
        return observation

    def outcome(self) -> float | None:
        return self._ask(lambda environment: environment.outcome())

    def _ask(self, question: Callable[[Environment], T]) -> T:
        for _ in range(RETRIES):
            try:
                return question(self._there())
            except SandboxFailure:
                self.close()
        return question(self._there())

    def _there(self) -> Environment:
        if self.environment is None:
            self.environment = self.make()
            for message in self.told:
                self.environment.act(message)
        return self.environment

    def close(self) -> None:
        environment, self.environment = self.environment, None
        if environment is not None:
            environment.close()


class _Running:
    """A dialogue that goes on. Its environment lives in a thread of its own.

    Python cannot end a thread, so an environment that is late is left behind in its one, which does
    not keep the process from ending.
    """

    def __init__(self, table: _Table, place: int, request: DialogueRequest) -> None:
        self.table, self.place, self.request = table, place, request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.observed: list[bool] = []
        self.turns: list[Turn] = []
        self.sampled = Rollout([], [], [], "stop")
        self.calls = self.failed = 0
        self.world = _World(lambda: table.make_environment(place))
        self.inbox: SimpleQueue[Rollout | None] = SimpleQueue()
        self.thread: Thread | None = None
        self.idle = Event()
        """Set where nothing is under way in the thread."""
        self.lock = Lock()
        self.since: float | None = None
        """When the environment was asked what it has not yet answered."""
        self.spent = 0.0
        """Seconds in the environment."""
        self.left = False
        """The environment was late: the thread is no longer listened to."""
        self.fault: BaseException | None = None
        self.result: Dialogue | None = None

    @property
    def room(self) -> int:
        return self.table.max_tokens - len(self.ids)

    def hear(self, rollout: Rollout) -> None:
        """Take what was sampled as the next turn; the environment answers in its thread."""
        self.idle.clear()
        if self.thread is None:
            self.thread = Thread(target=self._live, name=f"dialogue {self.place}", daemon=True)
            self.thread.start()
        self.inbox.put(rollout)

    def end_if_late(self) -> None:
        """End the dialogue, and leave its environment behind, once its time is up."""
        with self.lock:
            if self.since is None or self.left:
                return
            if self.spent + time.perf_counter() - self.since <= self.table.tool_seconds:
                return
            self.left = True
            self.table.slots.release()
        self._add(self.turns[-1].ids, said=True)
        self._finish("seconds")
        self.idle.set()

    def _live(self) -> None:
        try:
            while self.result is None and (rollout := self.inbox.get()) is not None:
                try:
                    self._step(rollout)
                except BaseException as fault:  # raised again by who waits for it
                    self.fault = None if self.left else fault
                if not self.left:
                    self.idle.set()
        finally:
            self.world.close()

    def _step(self, rollout: Rollout) -> None:
        """The environment's word on a turn."""
        with self.table.lock:
            turn = self.table.style.turn(rollout)
        self.sampled = rollout
        self.turns.append(turn)
        try:
            if turn.finish_reason == "length":
                self._end(turn, "length")
                return
            observation = self._timed(lambda: self.world.act(turn.text))
            if observation is None:
                return
            self.calls += observation.calls
            self.failed += observation.failed
            self._go_on(turn, observation)
        except SandboxFailure as error:
            if not self.left:
                self._add(turn.ids, said=True)
                self._finish("stop", error=str(error) or "the sandbox broke")

    def _timed(self, question: Callable[[], T]) -> T | None:
        """The environment's answer; None where it came too late, and nobody waits any more."""
        self.table.slots.acquire()
        with self.lock:
            self.since = time.perf_counter()
        try:
            answer = question()
        finally:
            with self.lock:
                if not self.left:
                    self.spent += time.perf_counter() - self.since
                    self.table.slots.release()
                self.since = None
        return None if self.left else answer

    def _go_on(self, turn: Turn, observation: Observation) -> None:
        if self.spent > self.table.tool_seconds:
            self._end(turn, "seconds")
        elif observation.done:
            self._end(turn, "stop")
        elif len(self.turns) == self.table.max_turns:
            self._end(turn, "turns")
        else:
            with self.table.lock:
                kept, shown = self.table.style.join(turn, observation.text)
            if len(kept) + len(shown) + self.table.least > self.room:
                self._end(turn, "length")
                return
            self._add(kept, said=True)
            self._add(shown, said=False)

    def _add(self, ids: Sequence[int], *, said: bool) -> None:
        """`said`: by the model, as the first ids that it has just sampled."""
        self.ids += ids
        self.observed += [not said] * len(ids)
        self.logprobs += self.sampled.logprobs[: len(ids)] if said else [0.0] * len(ids)

    def _end(self, turn: Turn, reason: FinishReason) -> None:
        verdict = self._timed(lambda: (self.world.outcome(),))
        if verdict is not None:
            self._add(turn.ids, said=True)
            self._finish(reason, outcome=verdict[0])

    def _finish(self, reason: FinishReason, outcome: float | None = None, error: str = "") -> None:
        if not self.left:
            self.world.close()
        rollout = Rollout(
            prompt_ids=list(self.request.prompt_ids),
            response_ids=self.ids,
            logprobs=self.logprobs,
            finish_reason=reason,
            weight_version=self.sampled.weight_version,
            images=self.request.images,
            observed=self.observed,
            calls=self.calls,
            failed_calls=self.failed,
            outcome=outcome,
            error=error,
        )
        with self.table.lock:
            seconds = time.perf_counter() - self.table.started
            text = decode(self.table.tokenizer, self.ids)
            self.result = Dialogue(rollout, text, self.turns, seconds)
            if self.table.on_finished is not None:
                self.table.on_finished(self.place, self.result)
