"""Sampling with a Hugging Face model and its KV cache.

Axes: U distinct prompts, B live sequences, L length of the padded prompt plus what was sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from reopold.bounds import CACHE_BYTES
from reopold.config import ConfigError
from reopold.data.images import Image
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import OnFinished, check_limits
from reopold.engines.draws import choose, uniforms
from reopold.engines.kv_cache import roomy_cache, use_grouped_attention
from reopold.engines.stops import StopStrings, response_end
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores, check_head, output_head, score
from reopold.stopping import ShouldStop, check, never
from reopold.vision import Vision, expanded, takes_images

#: Finished rows leave the batch once they make up this share of it: copying the cache costs too.
COMPACT_SHARE = 0.2
#: Padded positions a row that are never worth another batch.
PADDING = 64


def load_model(path: str, *, dtype: str, device: str) -> PreTrainedModel:
    """A causal LM, or one that also sees, in evaluation mode (no dropout: the importance ratio must
    be exact).

    Raises:
        ConfigError: no checkpoint at `path`, a damaged one, or a head that is not supported.
    """
    try:
        kind: Any = AutoModelForImageTextToText if takes_images(path) else AutoModelForCausalLM
        model: Any = kind.from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"checkpoint {path} cannot be loaded: {reason}") from error
    loaded: PreTrainedModel = model.to(device).eval()
    check_head(loaded, path)
    return loaded


@dataclass
class HFEngine:
    """Samples from a model that it may share with a trainer: then there is nothing to synchronise.

    Sampled tokens depend on the seeds; log-probs depend on the batch by float noise, and a draw
    that falls on the very edge between two tokens with them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weight_version: int = 0
    cache_bytes: int = CACHE_BYTES
    """Keys and values that a batch may need at most; more requests are sampled in turn."""
    micro_batch: int = 32
    """Sequences that are scored together."""
    vision: Vision | None = None
    """Of a model that takes images."""
    should_stop: ShouldStop = never
    """Asked at every token; then the batch is given up."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        should_stop: ShouldStop = never,
    ) -> HFEngine:
        model = load_model(str(path), dtype=dtype, device=device)
        vision = Vision.of(model, str(path))
        return cls(model, load_tokenizer(str(path)), vision=vision, should_stop=should_stop)

    @property
    def image_token_id(self) -> int | None:
        return None if self.vision is None else self.vision.image_token_id

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int = 1,
        limits: Sequence[int] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """See :class:`reopold.engines.base.Engine`. Rows that have ended leave the batch."""
        most = check_limits(prompts, params, limits)
        shown = images or [()] * len(prompts)
        rows = [
            _Row(request * n + i, list(prompt), seed + i, limit, tuple(seen), ids)
            for request, (prompt, seed, limit, seen) in enumerate(
                zip(prompts, seeds, most, shown, strict=True)
            )
            for ids in [expanded(prompt, seen, self.vision)]
            for i in range(n)
        ]
        done: dict[int, Rollout] = {}

        def finish(place: int, rollout: Rollout) -> None:
            done[place] = rollout
            if on_finished is not None:
                on_finished(place, rollout)

        limit = self.cache_bytes // cache_bytes_per_token(self.model)
        for batch in batches(rows, max(most, default=0), limit):
            self._sample(batch, params, finish)
        return [done[place] for place in range(len(rows))]

    def _sample(self, rows: Sequence[_Row], params: SamplingParams, finish: OnFinished) -> None:
        eos, device = self.tokenizer.eos_token_id, self.model.device
        decoder = _Decoder(self.model, rows, len(self.tokenizer), eos, self.vision)
        stops = {eos, *params.stop_ids}
        stops_K = torch.tensor(sorted(stops), device=device)
        strings = StopStrings(self.tokenizer, params.stop_strings)
        limits_R = torch.tensor([row.limit for row in rows], device=device)
        longest = max(row.limit for row in rows)
        uniforms_RT = uniforms([row.seed for row in rows], longest).to(device)
        tokens_RT = torch.full_like(uniforms_RT, eos, dtype=torch.long)
        logprobs_RT = torch.zeros_like(tokens_RT, dtype=decoder.logits_BV.dtype)

        def report(rows_K: Tensor, length: int) -> None:
            for row, ids, logprobs in zip(
                rows_K.tolist(),
                tokens_RT[rows_K, :length].tolist(),
                logprobs_RT[rows_K, :length].tolist(),
                strict=True,
            ):
                end, reason = response_end(ids, stops, rows[row].limit, strings)
                finish(
                    rows[row].place,
                    Rollout(
                        prompt_ids=rows[row].prompt,
                        response_ids=ids[:end],
                        logprobs=logprobs[:end],
                        finish_reason=reason,
                        weight_version=self.weight_version,
                        images=rows[row].images,
                    ),
                )

        for t in range(longest):
            check(self.should_stop)
            rows_B = decoder.rows_B
            ids_B, chosen_B = choose(
                decoder.logits_BV,
                uniforms_RT[rows_B, t],
                params.temperature,
                params.logprob_temperature,
                top_p=params.top_p,
                banned_K=stops_K if t < params.min_new_tokens else None,
            )
            tokens_RT[rows_B, t], logprobs_RT[rows_B, t] = ids_B, chosen_B
            ended_B = torch.isin(ids_B, stops_K) | (t + 1 >= limits_R[rows_B])
            if params.stop_strings:
                for b, (row, token) in enumerate(zip(rows_B.tolist(), ids_B.tolist(), strict=True)):
                    if token in strings.candidates:
                        ended_B[b] |= strings.completes(tokens_RT[row, : t + 1].tolist())
            left_K = decoder.retire(ended_B)
            if len(left_K):
                report(left_K, t + 1)
            if not len(decoder.rows_B):
                break
            decoder.advance(tokens_RT[decoder.rows_B, t])

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        head = output_head(self.model, len(self.tokenizer))
        return score(
            self.model,
            rollouts,
            head=head,
            micro_batch=self.micro_batch,
            top_k=top_k,
            vision=self.vision,
            should_stop=self.should_stop,
        )

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        if model is not self.model:
            self.model.load_state_dict(model.state_dict())
        self.weight_version = version
        return self.weight_version

    def sleep(self) -> None:
        """Nothing to give back: the cache lives for one call, and the trainer needs the weights."""

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Row:
    place: int
    prompt: list[int]
    seed: int
    limit: int
    """Most new tokens."""
    images: tuple[Image, ...]
    expanded: list[int]
    """The prompt with the room that its images take."""

    @property
    def context(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What rows have in common that may share a prefill."""
        return tuple(self.expanded), tuple(image.digest for image in self.images)


def batches(rows: Sequence[_Row], new_tokens: int, token_limit: int) -> Iterator[list[_Row]]:
    """Rows of like prompt length, the longest first, within the tokens that the cache may hold.

    A shorter prompt is padded up to the longest of its batch; past a quarter of padding it waits.
    """
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.expanded)):
        if batch:
            longest = len(batch[0].expanded)
            full = (len(batch) + 1) * (longest + new_tokens) > token_limit
            padding = longest - len(row.expanded)
            if full or padding > max(PADDING, longest // 4):
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Keys and values of one position in every layer."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


class _Decoder:
    """The live rows of a batch: their cache, mask and next-token logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[_Row],
        vocab_size: int,
        pad: int,
        vision: Vision | None,
    ) -> None:
        use_grouped_attention(model)
        self.model, self.head, self.vision = model, output_head(model, vocab_size), vision
        pad = pad if vision is None else vision.filler
        self.cache = roomy_cache(model)
        # Each distinct prompt is read once, whoever shares it. Any id will do under the mask:
        # Llama's tokenizers have no pad token.
        contexts = [row.context for row in rows]
        distinct = dict(zip(contexts, rows, strict=True))
        number = {context: u for u, context in enumerate(distinct)}
        ids_UL, self.mask_BL = _left_pad([ids for ids, _ in distinct], pad, model.device)
        self.padded = not bool(self.mask_BL.all())
        position_UL = (self.mask_BL.cumsum(-1) - 1).clamp(min=0)
        inputs: dict[str, Tensor] = {"position_ids": position_UL}
        delta_U: Tensor | None = None
        if vision is not None:
            placed = vision.place(
                [row.expanded for row in distinct.values()],
                [row.images for row in distinct.values()],
                length=ids_UL.shape[1],
                left=True,
            )
            inputs, delta_U = {**inputs, **placed.inputs}, placed.deltas_B
        logits_UV = self._forward(ids_UL, inputs)
        expand_B = torch.tensor([number[context] for context in contexts], device=model.device)
        self.delta_B = None if delta_U is None else delta_U[expand_B]
        self.cache.batch_select_indices(expand_B)
        self.mask_BL = self.mask_BL[expand_B]
        self.length_B = self.mask_BL.sum(-1)
        self.rows_B = torch.arange(len(rows), device=model.device)
        self.live_B = torch.ones_like(self.rows_B, dtype=torch.bool)
        self.logits_BV = logits_UV[expand_B]

    def retire(self, ended_B: Tensor) -> Tensor:
        """Note which rows have ended; drop them once they are worth dropping.

        Returns:
            The rows that have ended and are gone, which their caller may now collect.
        """
        self.live_B &= ~ended_B
        live = int(self.live_B.sum())
        if len(self.live_B) - live <= COMPACT_SHARE * len(self.live_B) and live:
            return self.rows_B[:0]
        gone_K, kept_B = self.rows_B[~self.live_B], self.live_B.nonzero().squeeze(-1)
        self.cache.batch_select_indices(kept_B)
        self.rows_B, self.live_B = self.rows_B[kept_B], self.live_B[kept_B]
        self.mask_BL, self.length_B = self.mask_BL[kept_B], self.length_B[kept_B]
        self.delta_B = None if self.delta_B is None else self.delta_B[kept_B]
        return gone_K

    def advance(self, ids_B: Tensor) -> None:
        """Feed the sampled tokens of the rows that are left."""
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(ids_B), 1)], dim=-1)
        position_BT = self.length_B[:, None]
        if self.delta_B is not None:
            position_BT = (position_BT + self.delta_B[:, None]).expand(3, -1, -1)
        if self.vision is not None:
            asks_B = ids_B == self.vision.image_token_id
            ids_B = ids_B.masked_fill(asks_B, self.vision.filler)
        self.logits_BV = self._forward(ids_B[:, None], {"position_ids": position_BT})
        self.length_B = self.length_B + 1

    def _forward(self, ids_BT: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of the last position over the real vocabulary, at least float32."""
        hidden_BTD = self.model.base_model(
            input_ids=ids_BT,
            attention_mask=self.mask_BL if self.padded else None,
            past_key_values=self.cache,
            use_cache=True,
            **inputs,
        ).last_hidden_state
        return self.head.logits(hidden_BTD[:, -1])


def _left_pad(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids_UL = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask_UL = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_UL[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_UL[row, longest - len(prompt) :] = 1
    return ids_UL.to(device), mask_UL.to(device)
