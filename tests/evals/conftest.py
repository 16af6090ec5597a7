"""Test problems, a scripted engine and a tiny real checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reopold.config import EvaluationConfig
from reopold.data.images import Image
from reopold.engines.base import OnFinished
from reopold.integrity import seal
from reopold.micro.maths import draw
from reopold.rollouts import Rollout, SamplingParams


def write_problems(path: Path, seed: int) -> Path:
    """Twelve problems that depend on the seed."""
    lines = [
        {"id": f"q{i:03d}", "prompt": [{"role": "user", "content": p.question}], "answer": p.answer}
        for i, p in enumerate(draw("test", 12, seed))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class ScriptedEngine:
    """Answers by its seeds alone, and remembers what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.batches: list[int] = []
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        images: Sequence[Sequence[Image]],
        on_finished: OnFinished,
    ) -> list[Rollout]:
        self.batches.append(len(prompts))
        self.asked += [(tuple(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        rollouts = [self.answer(p, seed) for p, seed in zip(prompts, seeds, strict=True)]
        for place, rollout in reversed([*enumerate(rollouts)]):  # they finish in any order
            on_finished(place, rollout)
        return rollouts

    def answer(self, prompt: Sequence[int], seed: int) -> Rollout:
        rng = random.Random(seed)
        text = "1+2=3;" * rng.randrange(4)
        cut_off = rng.random() < 0.25
        ids = self.tokenizer.encode(text + ("" if cut_off else f"#{rng.randrange(4)}"))
        ids += [] if cut_off else [self.tokenizer.eos_token_id]
        return Rollout(list(prompt), ids, [0.0] * len(ids), "length" if cut_off else "stop")


@pytest.fixture
def scripted_engine(tokenizer: Any) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from reopold.micro.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def problems_file(tmp_path: Path) -> Path:
    return write_problems(tmp_path / "test.jsonl", seed=3)


@pytest.fixture
def other_problems(tmp_path: Path) -> Path:
    """Other problems under the same ids."""
    return write_problems(tmp_path / "other.jsonl", seed=4)


@pytest.fixture
def settings(problems_file: Path) -> EvaluationConfig:
    return EvaluationConfig(data=str(problems_file), samples=3, max_new_tokens=12)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """An untrained model, saved as the trainer saves one."""
    from reopold.micro.models import build_model, save_model

    folder = tmp_path_factory.mktemp("models") / "step-000075"
    save_model(build_model(tokenizer, width=32, layers=1, seed=5), tokenizer, folder)
    seal(folder, 75)
    return folder
