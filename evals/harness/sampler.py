"""Drawing the samples that a benchmark asks for: single answers, or dialogues with a tool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from tqdm import tqdm

from evals.benchmarks.base import Problem
from evals.harness.journal import Generation, SampleKey
from reopold.answers.thinking import opened_thought
from reopold.data.images import Image, prompt_length
from reopold.data.prompts import Prompt
from reopold.data.tokenizers import render
from reopold.engines.base import Engine
from reopold.rollouts import Rollout, SamplingParams

if TYPE_CHECKING:
    from reopold.vision import Vision

#: Told of every sample as soon as it is drawn.
Keep = Callable[[SampleKey, Generation], None]

Item = TypeVar("Item")


class Request(NamedTuple):
    key: SampleKey
    problem: Problem
    seed: int
    images: tuple[Image, ...] = ()
    """The problem's, in the order of their placeholders."""


class Sampler(Protocol):
    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        """Draw every request and hand each sample to `keep`, in whatever order they finish."""
        ...


@dataclass
class AnswerSampler:
    """One answer a request; chats are rendered by the code that renders them in training."""

    engine: Engine
    tokenizer: Any
    batch_size: int
    label: str = "sampling"
    """Of the progress bar."""
    vision: Vision | None = None
    """Of a model that takes images."""

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        # All of them first: a prompt that cannot be rendered ends it before any work is done.
        prompts = rendered(self.tokenizer, requests, self.vision)
        asked = list(zip(requests, prompts, strict=True))
        with progress(len(requests), self.label) as bar:
            for batch in batches(asked, self.batch_size):
                self._draw(batch, params, keep, bar)

    def _draw(
        self,
        batch: Sequence[tuple[Request, list[int]]],
        params: SamplingParams,
        keep: Keep,
        bar: Any,
    ) -> None:
        started = time.perf_counter()

        def finished(place: int, rollout: Rollout) -> None:
            keep(batch[place][0].key, self._generation(rollout, time.perf_counter() - started))
            bar.update()

        self.engine.generate(
            [prompt for _, prompt in batch],
            params,
            seeds=[request.seed for request, _ in batch],
            images=[request.images for request, _ in batch],
            on_finished=finished,
        )

    def _generation(self, rollout: Rollout, seconds: float) -> Generation:
        text = str(self.tokenizer.decode(rollout.response_ids, skip_special_tokens=True))
        return Generation(
            text=opened_thought(self.tokenizer, rollout.prompt_ids) + text,
            ids=rollout.response_ids,
            finish_reason=rollout.finish_reason,
            tokens=len(rollout.response_ids),
            prompt_tokens=prompt_length(self.vision, rollout.prompt_ids, rollout.images),
            seconds=round(seconds, 4),
        )


def rendered(
    tokenizer: Any, requests: Sequence[Request], vision: Vision | None = None
) -> list[list[int]]:
    """Token ids of every request's chat, one placeholder id an image; the samples of a problem
    share its rendering.

    Raises:
        ConfigError: the tokenizer or the model's vision cannot take a prompt.
    """
    firsts = {each.problem.id: each for each in reversed(requests)}
    if vision is not None:
        check_prompts(vision, tokenizer, list(firsts.values()))
    prompts = {
        name: render(tokenizer, each.problem.messages, images=len(each.images))
        for name, each in firsts.items()
    }
    return [prompts[each.problem.id] for each in requests]


def check_prompts(vision: Vision, tokenizer: Any, requests: Sequence[Request]) -> None:
    """Raises ConfigError: a prompt's images do not fit what stands for them in its text, or take
    more room than the model has."""
    vision.check(
        tokenizer,
        [
            Prompt(each.problem.id, each.problem.messages, each.problem.gold, images=each.images)
            for each in requests
        ],
    )


def progress(total: int, label: str) -> Any:
    """A bar on terminals, nothing elsewhere."""
    return tqdm(total=total, desc=label, unit="sample", disable=None)


def batches(requests: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Requests in order, `size` at a time."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
