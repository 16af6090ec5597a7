"""Scores of given responses under a model: the same code for teacher, pi_old and the update.

Sequences are padded on the right. Under causal attention a pad never reaches a real position, so
no mask and no position ids are needed and a score does not depend on the padding (trl #6800).

Axes: B sequences of a micro-batch, L padded length, N response tokens of given rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reopold.config import ConfigError
from reopold.divergences import TopK, Vocabulary
from reopold.logprobs import Head, token_logprobs_and_entropy, top_logprobs, upcast
from reopold.rollouts import Rollout
from reopold.stopping import ShouldStop, check, never
from reopold.vision import Vision, expanded

#: Share of a micro-batch's length that its shortest sequence may be padded by, and the sequences
#: that are worth a pass of their own.
PADDING, FEWEST = 0.2, 12


@dataclass(frozen=True)
class MicroBatch:
    """Some rollouts of a step, padded, and where their tokens lie in the step's flat order."""

    input_ids_BL: Tensor
    row_N: Tensor
    position_N: Tensor
    """Position whose hidden state predicts the token: one before the token itself."""
    targets_N: Tensor
    index_N: Tensor
    """Index of each token in the step's flattened order (rollouts in order, then time)."""
    vision: dict[str, Tensor] = field(default_factory=dict)
    """What a vision-language model needs beside the ids."""


def micro_batches(
    rollouts: Sequence[Rollout],
    size: int,
    device: torch.device | str,
    vision: Vision | None = None,
) -> Iterator[MicroBatch]:
    """Cut rollouts into micro-batches of `size` sequences at most, longest together.

    A batch ends early where the next sequence would be padded by more than :data:`PADDING` of its
    batch's length, so that a large `size` costs no time.

    Args:
        vision: of the model; its images take their room in the prompt.

    Raises:
        ConfigError: images that the model cannot take.
    """
    prompts = [expanded(r.prompt_ids, r.images, vision) for r in rollouts]
    lengths = [len(p) + len(r.response_ids) for p, r in zip(prompts, rollouts, strict=True)]
    responses = torch.tensor([len(r.response_ids) for r in rollouts])
    starts = (responses.cumsum(0) - responses).tolist()

    def padded(chosen: Sequence[int]) -> MicroBatch:
        parts = [_Part(prompts[j], rollouts[j], starts[j]) for j in chosen]
        return _pad(parts, device, vision)

    chosen: list[int] = []
    for i in sorted(range(len(rollouts)), key=lambda i: -lengths[i]):
        short = chosen and lengths[i] < (1.0 - PADDING) * lengths[chosen[0]]
        if len(chosen) == size or (short and len(chosen) >= FEWEST):
            yield padded(chosen)
            chosen = []
        chosen.append(i)
    if chosen:
        yield padded(chosen)


class _Part(NamedTuple):
    prompt: list[int]
    """Expanded."""
    rollout: Rollout
    start: int
    """Of its tokens in the step's flat order."""


def _pad(
    parts: Sequence[_Part], device: torch.device | str, vision: Vision | None = None
) -> MicroBatch:
    sequences = [
        part.prompt + (vision.harmless(ids) if vision else ids)
        for part in parts
        for ids in [part.rollout.response_ids]
    ]
    longest = max(len(ids) for ids in sequences)
    pad = vision.filler if vision else 0  # any id will do but one that asks for an image
    input_ids = torch.full((len(parts), longest), pad, dtype=torch.long)
    row: list[int] = []
    position: list[int] = []
    targets: list[int] = []
    index: list[int] = []
    for i, (part, ids) in enumerate(zip(parts, sequences, strict=True)):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        length = len(part.rollout.response_ids)
        first = len(part.prompt) - 1
        row += [i] * length
        position += range(first, first + length)
        targets += part.rollout.response_ids
        index += range(part.start, part.start + length)
    row_N, position_N, targets_N, index_N = (
        torch.tensor(values, dtype=torch.long, device=device)
        for values in (row, position, targets, index)
    )
    images = [part.rollout.images for part in parts]
    placed = vision.place(sequences, images, length=longest).inputs if vision else {}
    ids_BL = input_ids.to(device)
    return MicroBatch(ids_BL, row_N, position_N, targets_N, index_N, placed)


def token_hidden(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Last hidden states [N, D] of the positions that predict the micro-batch's tokens."""
    hidden_BLD = model.base_model(
        input_ids=batch.input_ids_BL, use_cache=False, **batch.vision
    ).last_hidden_state
    hidden_ND: Tensor = hidden_BLD[batch.row_N, batch.position_N]
    return hidden_ND


#: Micro-batches of a step with the hidden states that predict their tokens.
Forward = list[tuple[MicroBatch, Tensor]]


@dataclass(frozen=True)
class Scores:
    """What a model says of given responses; N runs over rollouts in order, then time."""

    logprobs_N: Tensor
    """At least float32, nats."""
    entropy_N: Tensor | None
    """None from a server, which returns no entropies."""
    distribution: TopK | Vocabulary | None = None
    """More than the sampled token's log-prob, where it was asked for."""

    def to(self, device: torch.device | str) -> Scores:
        """The same on `device`: a server's scores come in on the CPU."""
        entropy_N = None if self.entropy_N is None else self.entropy_N.to(device)
        top = self.distribution
        if isinstance(top, TopK):
            top = TopK(top.ids_NK.to(device), top.logprobs_NK.to(device))
        return Scores(self.logprobs_N.to(device), entropy_N, top)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    head: Head,
    micro_batch: int,
    top_k: int = 0,
    vocabulary: bool = False,
    forward: Forward | None = None,
    vision: Vision | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    should_stop: ShouldStop = never,
) -> Scores:
    """Log-prob and entropy of every response token under `model`.

    Args:
        head: of the same model, with the real vocabulary and the temperature of the log-probs.
        top_k: also the log-probs of this many likeliest ids at each position.
        vocabulary: also the whole distribution, kept as hidden states: N x D of them.
        forward: is filled with the micro-batches and their hidden states, with their graphs, for
            an update that would otherwise compute them again.
        vision: of the same model; None for a text model.
        within: what the layers, not the head, are computed in (:mod:`reopold.precision`).

    Raises:
        StopRequested: `should_stop` said so between two micro-batches.
    """
    total = sum(len(r.response_ids) for r in rollouts)
    dtype = torch.promote_types(model.dtype, torch.float32)
    logprobs_N = torch.full((total,), torch.nan, dtype=dtype, device=model.device)
    entropy_N = logprobs_N.clone()
    more: TopK | Vocabulary | None = None
    for batch in micro_batches(rollouts, micro_batch, model.device, vision):
        check(should_stop)
        with torch.set_grad_enabled(forward is not None), within():
            hidden_ND = token_hidden(model, batch)
        if forward is not None:
            forward.append((batch, hidden_ND))
        logprobs_N[batch.index_N], entropy_N[batch.index_N] = token_logprobs_and_entropy(
            hidden_ND, head.weight_VD, batch.targets_N, **head.settings()
        )
        if vocabulary:
            more = more or Vocabulary(hidden_ND.new_empty(total, hidden_ND.shape[1]), head)
            assert isinstance(more, Vocabulary)
            more.hidden_ND[batch.index_N] = hidden_ND
        elif top_k:
            ids_NK, top_NK = top_logprobs(hidden_ND, head, top_k)
            more = more or TopK(
                ids_NK.new_empty(total, ids_NK.shape[1]), top_NK.new_empty(total, top_NK.shape[1])
            )
            assert isinstance(more, TopK)
            more.ids_NK[batch.index_N], more.logprobs_NK[batch.index_N] = ids_NK, top_NK
    return Scores(logprobs_N, entropy_N, more)


def output_head(
    model: PreTrainedModel, vocab_size: int | None = None, temperature: float = 1.0
) -> Head:
    """The output head of a Hugging Face causal LM: weight, bias, scale and soft cap.

    Cohere multiplies its logits, Falcon-H1 its head's output, Granite divides, Gemma 2 caps.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()

    def setting(name: str, absent: float) -> float:
        value = getattr(config, name, None)
        return absent if value is None else float(value)

    scale = setting("logit_scale", 1.0) * setting("lm_head_multiplier", 1.0)
    return Head(
        weight_VD=head.weight,
        bias_V=getattr(head, "bias", None),
        scale=scale / setting("logits_scaling", 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
        vocab_size=vocab_size,
        temperature=temperature,
    )


#: Largest difference in nats between a model's own log-probs and ours, as a share of their size.
HEAD_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose logits are not those of its head as we know it: every score would be
    wrong, and nothing would say so. Compares the two on a handful of token ids.

    Raises:
        ConfigError: they differ.
    """
    head = output_head(model)
    rows = len(head.weight_VD)
    ids_BL = torch.arange(1, 9, device=model.device)[None] * 7919 % rows
    theirs_LV = upcast(model(input_ids=ids_BL, use_cache=False).logits[0])
    hidden_LD = model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state[0]
    ours_LV = head.logits(hidden_LD)
    error = float((ours_LV - theirs_LV).abs().max() / theirs_LV.abs().max().clamp(min=1.0))
    if not error <= HEAD_TOLERANCE.get(model.dtype, 2e-2):
        raise ConfigError(
            f"{name} computes its logits in a way that is not supported: they differ by "
            f"{error:.2g} (relative) from `cap(scale * (hidden @ weight.T + bias))` as its config "
            "describes it. Every score would be wrong; please report the model"
        )
