"""Engines that keep to the protocol and say what a test has written, or noise.

Tokens are characters, so that ids and budgets can be read off a text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reopold.data.images import Image
from reopold.engines.base import SEED_LIMIT, check_limits
from reopold.rollouts import Rollout, SamplingParams

SPECIAL = ("<pad>", "<eos>", "<unk>", "<think>", "</think>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyzFAW0123456789:=#> \n"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character, and the marks of a thought."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    return tokenizer


TOKENIZER = build_tokenizer()
EOS, CLOSE = 1, 4
BEYOND = len(TOKENIZER) + 3
"""An id of the model's padded vocabulary."""


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def decode(ids: Sequence[int]) -> str:
    return "".join([*SPECIAL, *CHARACTERS][token] for token in ids)


class Call(NamedTuple):
    prompt: tuple[int, ...]
    seed: int
    limit: int
    params: SamplingParams
    response: tuple[int, ...]


class FakeEngine:
    """Keeps to the engines' protocol; a subclass says which tokens come."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.batches = 0
        self.shown: list[list[tuple[Image, ...]]] = []
        """The images of every batch."""

    def tokens(self, prompt: Sequence[int], seed: int, params: SamplingParams) -> Any:
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int = 1,
        limits: Sequence[int] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
        on_finished: Any = None,
    ) -> list[Rollout]:
        self.batches += 1
        self.shown.append([tuple(each) for each in images or [()] * len(prompts)])
        most = check_limits(prompts, params, limits)
        rows = zip(prompts, seeds, most, strict=True)
        return [self.one(list(prompt), seed, limit, params) for prompt, seed, limit in rows]

    def one(self, prompt: list[int], seed: int, limit: int, params: SamplingParams) -> Rollout:
        assert 0 <= seed < SEED_LIMIT
        assert all(token < len(TOKENIZER) for token in prompt), "an unknown id was fed back"
        stops = {EOS, *params.stop_ids}
        ids: list[int] = []
        for token in self.tokens(prompt, seed, params):
            if len(ids) < params.min_new_tokens and token in stops:
                continue
            ids.append(token)
            if token in stops or len(ids) == limit:
                break
        stopped = ids[-1] in stops
        assert stopped or len(ids) == limit, "the play is too short"
        self.calls.append(Call(tuple(prompt), seed, limit, params, tuple(ids)))
        return Rollout(prompt, ids, [0.0] * len(ids), "stop" if stopped else "length")


class Play(FakeEngine):
    """Responses one after the other."""

    def __init__(self, *responses: str | list[int]) -> None:
        super().__init__()
        self.responses = iter(responses)

    def tokens(self, prompt: Sequence[int], seed: int, params: SamplingParams) -> list[int]:
        response = next(self.responses)
        return encode(response) if isinstance(response, str) else response


class Noise(FakeEngine):
    """Random tokens by the seed alone: letters, marks, parts of marks, EOS and unknown ids."""

    def tokens(self, prompt: Sequence[int], seed: int, params: SamplingParams) -> Any:
        rng = random.Random(seed)
        common = encode("abcd\n#>")
        while True:
            yield rng.choice([*common, *common, CLOSE, EOS, BEYOND])


def limits(engine: FakeEngine) -> list[int]:
    return [call.limit for call in engine.calls]
