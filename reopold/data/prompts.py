"""Prompts from a JSONL file, in a seeded order that a cursor can resume."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reopold.config import ConfigError


@dataclass(frozen=True)
class Prompt:
    id: str
    messages: list[dict[str, str]]
    answer: str
    completion: str = ""
    """A given response, for supervised fine-tuning."""
    source: str = ""
    """Data set the prompt comes from, where several teachers share a run."""


def load_prompts(path: str, *, completions: bool = False) -> list[Prompt]:
    """Read `{"id", "prompt", "answer", "completion"?, "source"?}` lines.

    Raises:
        ConfigError: no such file, no lines, or a faulty line (named by its number).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"no prompts at {path}: {error.strerror}") from error
    prompts = [_parse(line, f"{path} line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    if completions and not all(prompt.completion for prompt in prompts):
        raise ConfigError(f"{path}: supervised fine-tuning needs a 'completion' on every line")
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not valid JSON: {error.msg}") from error
    if not isinstance(raw, dict) or not {"id", "prompt", "answer"} <= raw.keys():
        raise ConfigError(f"{where} needs the keys id, prompt and answer")
    messages = raw["prompt"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
    ):
        raise ConfigError(f"{where}: 'prompt' must be a list of {{role, content}} messages")
    given = {key: str(raw[key]) for key in ("completion", "source") if key in raw}
    return Prompt(str(raw["id"]), messages, str(raw["answer"]), **given)


def batch_indices(total: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of the prompts of a step: the position in the data is a function of (seed, step).

    Every epoch is a new permutation; a batch may span two. So a resumed run, or one that looks
    ahead, reads exactly what an uninterrupted one does.
    """
    first = step * size
    indices: list[int] = []
    while len(indices) < size:
        epoch, offset = divmod(first + len(indices), total)
        order = np.random.default_rng([seed, epoch]).permutation(total)
        indices += order[offset : offset + size - len(indices)].tolist()
    return indices
