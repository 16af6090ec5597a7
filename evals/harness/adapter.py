"""An engine as an lm-eval model: token ids in, token ids out, and a seed for every sample."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evals.benchmarks.base import Problem
from evals.harness.journal import Generation, Journal, SampleKey
from evals.harness.sampler import Request, Sampler
from reopold.data.images import Image, find_image
from reopold.engines.base import SEED_LIMIT
from reopold.rollouts import SamplingParams


@dataclass(frozen=True)
class _Wanted:
    """lm-eval's request, and which sample of which question it is."""

    key: SampleKey
    params: SamplingParams
    images: tuple[Image, ...]


class EngineLM(LM):  # type: ignore[misc]  # lm-eval ships no types
    """Samples on lm-eval's behalf.

    lm-eval asks for the k repeats of a question as k references to one request and gives the
    answers back to it in that order. The repeat is therefore counted here; it decides the seed,
    so that a sample depends on neither the batch size nor the order of the questions. Samples
    that the journal has from an interrupted evaluation are not drawn again.

    Args:
        problems: by question id.
    """

    MULTIMODAL = True

    def __init__(
        self, sampler: Sampler, problems: Mapping[str, Problem], journal: Journal, *, seed: int
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.problems = problems
        self.journal = journal
        self.seed = seed

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The response texts, in the order of the requests.

        Raises:
            ValueError: the task asks for stop strings, or for a setting that the engine would not
                obey, or it shows other images than the problem has.
        """
        wanted = self._wanted(requests)
        params = {each.params for each in wanted}
        if len(params) > 1:
            raise ValueError("one benchmark has one generation setting for all questions")
        asked = [
            Request(
                each.key,
                self.problems[each.key.question],
                sample_seed(self.seed, *each.key),
                each.images,
            )
            for each in wanted
            if each.key not in self.journal
        ]
        if asked:
            self.sampler.sample(asked, params.pop(), self.journal.add)
        return [self.generation(each.key).text for each in wanted]

    def generation(self, key: SampleKey) -> Generation:
        return self.journal[key]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "benchmarks are generated, not scored: use output_type generate_until in the task"
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        self.loglikelihood(requests)

    def _wanted(self, requests: Sequence[Instance]) -> list[_Wanted]:
        repeats: dict[str, int] = defaultdict(int)
        found = []
        for request in requests:
            question = request.doc["id"]
            key = SampleKey(question, repeats[question])
            params, images = _sampling_params(request.args[1]), self._images(request)
            found.append(_Wanted(key, params, images))
            repeats[question] += 1
        return found

    def _images(self, request: Instance) -> tuple[Image, ...]:
        """What lm-eval shows with a request: of multimodal tasks its third argument."""
        shown = [path for part in request.args[2:] for path in part["visual"]]
        problem = self.problems[request.doc["id"]]
        if shown != problem.images:
            raise ValueError(
                f"lm-eval shows {shown} with question {problem.id}, which has {problem.images}"
            )
        return tuple(find_image(path) for path in shown)


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
        max_new_tokens=settings.pop("max_gen_toks"),
        temperature=settings.pop("temperature"),
        top_p=settings.pop("top_p", 1.0),
    )
    if settings:
        raise ValueError(f"generation settings not supported: {', '.join(sorted(settings))}")
    return params
