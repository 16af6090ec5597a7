"""Sampling with a Hugging Face model and its KV cache.

Axes: U distinct prompts, B live sequences, L length of the padded prompt plus what was sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from reopold.config import ConfigError
from reopold.data.tokenizers import load_tokenizer
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import check_head, output_head

#: Finished rows leave the batch once they make up this share of it: copying the cache costs too.
COMPACT_SHARE = 0.2


def load_model(path: str, *, dtype: str, device: str) -> PreTrainedModel:
    """A causal LM in evaluation mode (no dropout: the importance ratio must be exact).

    Raises:
        ConfigError: no checkpoint at `path`, a damaged one, or a head that is not supported.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"checkpoint {path} cannot be loaded: {reason}") from error
    loaded: PreTrainedModel = model.to(device).eval()
    check_head(loaded, path)
    return loaded


@dataclass
class HFEngine:
    """Samples from a model that it may share with a trainer: no weights to synchronise."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weight_version: int = 0

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> HFEngine:
        return cls(load_model(str(path), dtype=dtype, device=device), load_tokenizer(str(path)))

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """See :class:`reopold.engines.base.Engine`. Rows that reach EOS leave the batch."""
        if not prompts:
            return []
        uniforms_BT = _uniforms(seeds, params.max_new_tokens).to(self.model.device)
        decoder = _Decoder(self.model, prompts, self.tokenizer)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        finished: set[int] = set()
        for t in range(params.max_new_tokens):
            ids_B, logprobs_B = choose(
                decoder.logits_BV,
                uniforms_BT[decoder.rows_B, t],
                params.temperature,
                params.logprob_temperature,
            )
            ended_B = ids_B == self.tokenizer.eos_token_id
            for row, token, logprob, ended in zip(
                decoder.rows_B.tolist(),
                ids_B.tolist(),
                logprobs_B.tolist(),
                ended_B.tolist(),
                strict=True,
            ):
                if row in finished:
                    continue
                tokens[row].append(token)
                logprobs[row].append(logprob)
                if ended:
                    finished.add(row)
            if len(finished) == len(prompts) or t + 1 == params.max_new_tokens:
                break
            decoder.advance(ids_B, ended_B)
        return [
            Rollout(
                prompt_ids=list(prompt),
                response_ids=tokens[row],
                logprobs=logprobs[row],
                finish_reason="stop" if row in finished else "length",
                weight_version=self.weight_version,
            )
            for row, prompt in enumerate(prompts)
        ]


class _Decoder:
    """The live rows of a batch: their cache, mask and next-token logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.model, self.head = model, output_head(model, len(tokenizer))
        self.cache = DynamicCache(config=model.config)
        runs = [
            (list(prompt), len(list(same)))
            for prompt, same in itertools.groupby(prompts, key=tuple)
        ]
        # Any id will do under the mask; Llama's tokenizers have no pad token.
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids_UL, mask_UL = _left_pad([prompt for prompt, _ in runs], int(pad), model.device)
        # Equal neighbours share one prefill: the G samples of a prompt, or its k repeats.
        copies = torch.tensor([count for _, count in runs], device=model.device)
        logits_UV = self._forward(ids_UL, mask_UL, (mask_UL.cumsum(-1) - 1).clamp(min=0))
        self.rows_B = torch.arange(len(prompts), device=model.device)
        self.live_B = torch.ones_like(self.rows_B, dtype=torch.bool)
        expand_B = torch.arange(len(runs), device=model.device).repeat_interleave(copies)
        self.cache.batch_select_indices(expand_B)
        self.mask_BL = mask_UL[expand_B]
        self.length_B = self.mask_BL.sum(-1)
        self.logits_BV = logits_UV[expand_B]

    def advance(self, ids_B: Tensor, ended_B: Tensor) -> None:
        """Feed the sampled tokens; drop the rows that have ended once they are worth dropping."""
        self.live_B &= ~ended_B
        if self.live_B.float().mean() <= 1.0 - COMPACT_SHARE:
            kept = self.live_B.nonzero().squeeze(-1)
            self.cache.batch_select_indices(kept)
            self.rows_B, self.mask_BL, self.length_B = (
                self.rows_B[kept],
                self.mask_BL[kept],
                self.length_B[kept],
            )
            ids_B, self.live_B = ids_B[kept], self.live_B[kept]
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(ids_B), 1)], dim=-1)
        self.logits_BV = self._forward(ids_B[:, None], self.mask_BL, self.length_B[:, None])
        self.length_B = self.length_B + 1

    def _forward(self, ids_BT: Tensor, mask_BL: Tensor, position_BT: Tensor) -> Tensor:
        """Logits of the last position over the real vocabulary, at least float32."""
        hidden_BTD = self.model.base_model(
            input_ids=ids_BT,
            attention_mask=None if bool(mask_BL.all()) else mask_BL,
            position_ids=position_BT,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self.head.logits(hidden_BTD[:, -1])


def choose(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, logprob_temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at the row's uniform number.

    Args:
        logits_BV: raw logits, at least float32.
        uniforms_B: float64 in [0, 1).
        temperature: of the draw; 0 takes the most likely token.

    Returns:
        ids_B and their log-probs at `logprob_temperature`, whatever the draw's temperature was.
    """
    logprobs_BV = torch.log_softmax(logits_BV / logprob_temperature, dim=-1)
    if temperature == 0.0:
        ids_B = logits_BV.argmax(-1)
    else:
        # float64: a float32 cumulative sum over 152k ids is coarser than the tail it walks.
        cumulative_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).cumsum(-1)
        threshold_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
        ids_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
        ids_B = ids_B.clamp(max=logits_BV.shape[-1] - 1)
    return ids_B, logprobs_BV.gather(-1, ids_B[:, None]).squeeze(-1)


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """float64 [len(seeds), count]: each row from its own counter-based stream, on any device."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


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
