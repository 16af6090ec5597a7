"""An engine as an lm-eval model: token ids in, token ids out, and a seed for every sample."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from reopold.engines.base import SEED_LIMIT, Engine
from reopold.rollouts import FinishReason, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Generation:
    """What lm-eval, which keeps the text only, would forget about a response."""

    finish_reason: FinishReason
    tokens: int
    """Response tokens, a closing EOS included."""


class EngineLM(LM):  # type: ignore[misc]  # lm-eval ships no types
    """Samples from an :class:`Engine` on lm-eval's behalf.

    lm-eval asks for the k repeats of a question as k references to one request and gives the
    answers back to it in that order. The repeat is therefore counted here; it decides the seed,
    so that a sample depends on neither the batch size nor the order of the questions.
    """

    def __init__(
        self, engine: Engine, tokenizer: PreTrainedTokenizerFast, *, seed: int, batch_size: int
    ) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self.generations: dict[str, list[Generation]] = defaultdict(list)
        """By question id, one a repeat."""

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    def prompt_ids(self, context: str) -> list[int]:
        """Ids of a rendered prompt; the template has already written every special token."""
        ids: list[int] = self.tokenizer.encode(context, add_special_tokens=False)
        return ids

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The response texts, in the order of the requests.

        Raises:
            ValueError: the task asks for stop strings, or for anything but sampling at a
                temperature: the engine would not obey.
        """
        params = [_sampling_params(request.args[1]) for request in requests]
        if any(other != params[0] for other in params):
            raise ValueError("one evaluation has one generation setting for all questions")
        ids = {request.args[0]: self.prompt_ids(request.args[0]) for request in requests}
        prompts = [ids[request.args[0]] for request in requests]
        seeds = list(self._seeds(requests))
        texts: list[str] = []
        with tqdm(total=len(requests), desc="sampling", unit="sample", disable=None) as progress:
            for start in range(0, len(requests), self.batch_size):
                cut = slice(start, start + self.batch_size)
                rollouts = self.engine.generate(prompts[cut], params[0], seeds=seeds[cut])
                for request, rollout in zip(requests[cut], rollouts, strict=True):
                    texts.append(self._keep(request, rollout))
                progress.update(len(rollouts))
        return texts

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "benchmarks are generated, not scored: use output_type generate_until in the task"
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        self.loglikelihood(requests)

    def _seeds(self, requests: Sequence[Instance]) -> Iterator[int]:
        repeats: dict[str, int] = defaultdict(int)
        for request in requests:
            question = request.doc["id"]
            yield sample_seed(self.seed, question, repeats[question])
            repeats[question] += 1

    def _keep(self, request: Instance, rollout: Rollout) -> str:
        generation = Generation(rollout.finish_reason, len(rollout.response_ids))
        self.generations[request.doc["id"]].append(generation)
        return str(self.tokenizer.decode(rollout.response_ids, skip_special_tokens=True))


def sample_seed(seed: int, question: str, repeat: int) -> int:
    """A seed for one sample, from nothing but what names it."""
    name = f"{seed}/{repeat}/{question}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) % SEED_LIMIT


def _sampling_params(wanted: dict[str, Any]) -> SamplingParams:
    """lm-eval's generation_kwargs; whatever the engine cannot do is refused, not dropped."""
    settings = dict(wanted)
    if settings.pop("until", []):
        raise ValueError("stop strings are not supported: a response ends with EOS")
    settings.pop("do_sample", None)  # temperature 0 says it
    params = SamplingParams(
        max_new_tokens=settings.pop("max_gen_toks"), temperature=settings.pop("temperature")
    )
    if settings:
        raise ValueError(f"generation settings not supported: {', '.join(sorted(settings))}")
    return params
