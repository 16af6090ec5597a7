"""Prompts from JSONL files, in a seeded order that a cursor can resume."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reopold.answers.judge import expected_calls
from reopold.config import ConfigError, DataConfig, Family, check_local
from reopold.data.images import Image, chat_parts, find_image
from reopold.data.published import SOURCES
from reopold.data.tokenizers import render
from reopold.environments import Budget, check_task, opening

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    id: str
    messages: list[Message]
    """The chat; `<image>` stands where an image belongs."""
    answer: str
    completion: tuple[Message, ...] = ()
    """A given response, for supervised fine-tuning: the assistant's message, or in a dialogue the
    assistant's and the tool's in turn, an assistant's first and last."""
    source: str = ""
    """Data set the prompt comes from, where several teachers share a run."""
    images: tuple[Image, ...] = ()
    """In the order of their placeholders."""
    environment: str = ""
    """What answers between the model's turns (:mod:`reopold.environments`); empty: one turn."""
    task: dict[str, Any] = field(default_factory=dict)
    """What the environment is made for, in fields of its own; most need none."""
    family: Family = "maths"


@dataclass(frozen=True)
class PromptMix:
    """The prompts of a run: one or several sets, each with its share of every step."""

    sets: list[list[Prompt]]
    shares: tuple[int, ...]
    """Of the sets (:attr:`reopold.config.DataConfig.shares`)."""
    seed: int

    def draw(self, size: int, number: int) -> list[Prompt]:
        """The prompts of a draw (from 0), a function of (seed, number): nothing has to be kept.

        The sets take turns, so that every stretch of prompts, an update's as well as a step's, has
        its share of each; and each set is drawn from in an order of its own.
        """
        if len(self.sets) == 1:
            chosen = batch_indices(len(self.sets[0]), size, number, self.seed)
            return [self.sets[0][i] for i in chosen]
        turns = _round(self.shares)
        rounds, begun = divmod(number * size, len(turns))
        now = [turns[(begun + i) % len(turns)] for i in range(size)]
        drawn = []
        for place, prompts in enumerate(self.sets):
            start = rounds * self.shares[place] + turns[:begun].count(place)
            seed = [self.seed, place]
            chosen = ordered(len(prompts), start, now.count(place), seed)
            drawn.append(iter([prompts[i] for i in chosen]))
        return [next(drawn[place]) for place in now]

    @property
    def prompts(self) -> list[Prompt]:
        """All of them, set after set."""
        return [prompt for prompts in self.sets for prompt in prompts]


def check_sets(data: DataConfig) -> None:
    """Refuse a recipe whose sets are no local files.

    Raises:
        ConfigError: names the key.
    """
    check_local("data.train", data.train)
    for place, other in enumerate(data.mix):
        check_local(f"data.mix.{place}.train", other.train)


def load_mix(
    data: DataConfig, family: Family, seed: int, *, completions: bool = False
) -> PromptMix:
    """Read every set of a recipe.

    Raises:
        ConfigError: as :func:`load_prompts`, or an answer is not of the form that the outcome
            reward compares with.
    """
    sets = [load_prompts(data.train, completions=completions, family=family)]
    sets += [load_prompts(s.train, completions=completions, family=s.family) for s in data.mix]
    if data.reward == "calls":
        for prompt in (prompt for prompts in sets for prompt in prompts):
            _check_calls(prompt)
    return PromptMix(sets, data.shares, seed)


def render_prompt(tokenizer: Any, prompt: Prompt, budget: Budget) -> list[int]:
    """Token ids of a prompt, with what its environment shows before the model's first word.

    Raises:
        ConfigError: the tokenizer does not know a part of it.
    """
    images = len(prompt.images)
    if not prompt.environment:
        return render(tokenizer, prompt.messages, images=images)
    begun, schemas = opening(prompt.environment, prompt.task, budget)
    return render(tokenizer, [*prompt.messages, *begun], images=images, tools=schemas)


def load_prompts(path: str, *, completions: bool = False, family: Family = "maths") -> list[Prompt]:
    """Read lines of
    `{"id", "prompt", "answer", "completion"?, "source"?, "images"?, "environment"?, "task"?}`.

    `images` are paths, relative to the file's folder. `completion` is a text or, of a dialogue, a
    list of messages.

    Raises:
        ConfigError: no such file, no lines, or a faulty line (named by its number).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        known = SOURCES.get(Path(path).parent.name)
        hint = f"; `reopold prompts {known.name}` writes {known.title}" if known else ""
        raise ConfigError(f"no prompts at {path}: {error.strerror}{hint}") from error
    folder = Path(path).parent
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(_parse(line, folder, family))
            except ConfigError as error:
                raise ConfigError(f"{path} line {number}: {error}") from error
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    if completions and not all(prompt.completion for prompt in prompts):
        raise ConfigError(f"{path}: supervised fine-tuning needs a 'completion' on every line")
    return prompts


def _parse(line: str, folder: Path, family: Family) -> Prompt:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}") from error
    if not isinstance(raw, dict) or not {"id", "prompt", "answer"} <= raw.keys():
        raise ConfigError("the keys id, prompt and answer are needed")
    messages = raw["prompt"]
    if not _is_chat(messages):
        raise ConfigError("'prompt' must be a list of {role, content} messages")
    images = raw.get("images", [])
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise ConfigError("'images' must be a list of paths")
    chat_parts(messages, len(images))
    environment, task = _environment(raw)
    completion = _completion(raw.get("completion", ""))
    if len(completion) > 1 and not environment:
        raise ConfigError("a 'completion' of several messages needs an 'environment'")
    return Prompt(
        id=str(raw["id"]),
        messages=messages,
        answer=str(raw["answer"]),
        completion=completion,
        source=str(raw.get("source", "")),
        images=tuple(find_image(str(folder / path)) for path in images),
        environment=environment,
        task=task,
        family=family,
    )


def _environment(raw: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Raises ConfigError: no such environment, or a task that it cannot be made for."""
    environment, task = str(raw.get("environment", "")), raw.get("task", {})
    if not isinstance(task, dict):
        raise ConfigError("'task' must be an object")
    if environment:
        check_task(environment, task)
    return environment, task


def _completion(given: Any) -> tuple[Message, ...]:
    if isinstance(given, str):
        return ({"role": "assistant", "content": given},) if given else ()
    roles = [m.get("role") for m in given] if _is_chat(given) else []
    if (
        not roles
        or len(roles) % 2 == 0
        or roles != ["assistant", "tool"] * (len(roles) // 2) + ["assistant"]
    ):
        raise ConfigError(
            "'completion' must be a text, or messages of the assistant and the tool in turn"
        )
    return tuple(given)


def _check_calls(prompt: Prompt) -> None:
    """Raises ConfigError: the answer is not what data.reward `calls` compares with."""
    try:
        expected_calls(prompt.answer)
    except ValueError as error:
        raise ConfigError(
            f"prompt {prompt.id}: its answer is no JSON list of calls ({error}), which data.reward "
            "'calls' compares with"
        ) from error


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() and isinstance(m["content"], str)
        for m in messages
    )


def batch_indices(total: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of the prompts of a step: the position in the data is a function of (seed, step).

    Every epoch is a new permutation; a batch may span two. So a resumed run, or one that looks
    ahead, reads exactly what an uninterrupted one does.
    """
    return ordered(total, step * size, size, [seed])


def ordered(total: int, start: int, count: int, seed: list[int]) -> list[int]:
    """`count` indices from position `start` on of the endless order of `total` things."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(start + len(indices), total)
        order = np.random.default_rng([*seed, epoch]).permutation(total)
        indices += order[offset : offset + count - len(indices)].tolist()
    return indices


@lru_cache(maxsize=8)
def _round(shares: tuple[int, ...]) -> list[int]:
    """Whose turn it is at each position, until all have had their shares and it begins again.

    Of the sets that have had less than their share so far, the one whose next turn is due first:
    then no set is ever a whole turn ahead or behind (the quota method; Still, SIAM J. Appl. Math.
    37, 1979).
    """
    total = sum(shares)
    taken = [0] * len(shares)
    turns = []
    for position in range(1, total + 1):
        waiting = [i for i, share in enumerate(shares) if taken[i] * total < share * position]
        place = min(waiting, key=lambda i: (taken[i] + 1) / shares[i])
        taken[place] += 1
        turns.append(place)
    return turns
