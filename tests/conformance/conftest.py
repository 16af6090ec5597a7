"""A tiny student, a ragged batch, and the table of what was compared (`make conformance`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from reopold.loss import RatioClip, fused_policy_loss
from reopold.rollouts import Credit, TokenBatch
from reopold.scoring import output_head

PROMPT, LONGEST, VOCABULARY = 4, 6, 61
LENGTHS = (6, 4, 1, 5)
#: What "equal" means: largest difference of any gradient, as a share of the gradient's norm.
TOLERANCE = 1e-6


@dataclass
class Record:
    """Measured differences, printed and kept when the session ends."""

    worst: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Library, loss and dtype: the larger of the errors with a tied and an untied head."""

    def add(self, library: str, loss: str, dtype: torch.dtype, error: float) -> None:
        key = library, loss, str(dtype).removeprefix("torch.")
        self.worst[key] = max(error, self.worst.get(key, 0.0))
        assert error <= TOLERANCE, f"{library} {loss}: relative gradient error {error:.2g}"

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "library": library,
                "version": version(library),
                "loss": loss,
                "dtype": dtype,
                "gradient_error": error,
            }
            for (library, loss, dtype), error in self.worst.items()
        ]


@pytest.fixture(scope="session")
def record() -> Iterator[Record]:
    found = Record()
    yield found
    out = Path(os.environ.get("REOPOLD_HOME", ".reopold")) / "conformance.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found.rows(), indent=2), encoding="utf-8")
    print(f"\n\n{'library':10} {'version':8} {'dtype':8} {'error':>8}  loss")
    for row in found.rows():
        print(
            f"{row['library']:10} {row['version']:8} {row['dtype']:8} "
            f"{row['gradient_error']:8.1e}  {row['loss']}"
        )
    print(f"kept in {out}")


@dataclass
class Batch:
    """Ragged responses: ids [B, P + T] padded on the right, mask [B, T], and signals [B, T]."""

    ids_BL: Tensor
    mask_BT: Tensor
    teacher_BT: Tensor
    drift_BT: Tensor
    """log pi_theta - log pi_old of each token."""
    advantage_B: Tensor

    @property
    def targets_BT(self) -> Tensor:
        return self.ids_BL[:, PROMPT:]

    @property
    def attention_BL(self) -> Tensor:
        return torch.cat([self.mask_BT.new_ones(len(self.mask_BT), PROMPT), self.mask_BT], -1)

    def token_batch(self, logprobs_BT: Tensor, **signals: Any) -> TokenBatch:
        """The same tokens as the objectives want them; `logprobs_BT` is pi_old."""
        keep = self.mask_BT.bool()
        rows = torch.arange(len(keep))[:, None].expand_as(keep)
        return TokenBatch(
            student_logprobs_N=logprobs_BT[keep].detach(),
            teacher_logprobs_N=self.teacher_BT[keep],
            entropy_N=torch.zeros_like(logprobs_BT[keep]).detach(),
            valid_N=torch.ones(int(keep.sum()), dtype=torch.bool),
            sequence_N=rows[keep],
            **signals,
        )


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, dtype: torch.dtype) -> PreTrainedModel:
    return make_model(0, dtype, tied=request.param)


def make_model(seed: int, dtype: torch.dtype, *, tied: bool) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    found: PreTrainedModel = Qwen3ForCausalLM(config)
    with torch.no_grad():  # larger than at the start of training: log-probs that differ
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return found.to(dtype).eval()


@pytest.fixture
def batch(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (len(LENGTHS), LONGEST)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).long()
    return Batch(
        torch.randint(1, VOCABULARY, (shape[0], PROMPT + LONGEST), generator=generator),
        mask,
        -3.0 * torch.rand(shape, generator=generator, dtype=dtype),
        0.4 * torch.randn(shape, generator=generator, dtype=dtype),
        torch.randn(shape[0], generator=generator, dtype=dtype),
    )


def hidden_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states that predict the responses' tokens, [B, T, D]."""
    found: Tensor = model.base_model(
        input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False
    ).last_hidden_state[:, PROMPT - 1 : -1]
    return found


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    found: Tensor = model.get_output_embeddings()(hidden_of(model, batch))
    return found


def sampled(logits: Tensor, batch: Batch) -> Tensor:
    logprobs = torch.log_softmax(logits, -1)
    return logprobs.gather(-1, batch.targets_BT[..., None]).squeeze(-1)


def our_loss(
    model: PreTrainedModel,
    batch: Batch,
    credit: Credit,
    old_BT: Tensor | None,
    *,
    normaliser: Tensor | float | None = None,
    ratio_clip: RatioClip | None = None,
) -> Tensor:
    """The fused loss of a credit over the batch's valid tokens."""
    keep = batch.mask_BT.bool()
    head = output_head(model)
    loss, _, _ = fused_policy_loss(
        hidden_of(model, batch)[keep],
        head.weight_VD,
        batch.targets_BT[keep],
        None if old_BT is None else old_BT[keep],
        credit,
        normaliser=credit.keep_N.sum() if normaliser is None else normaliser,
        ratio_clip=ratio_clip,
        chunk_tokens=5,
        **head.settings(),
    )
    return loss


def gradients(model: PreTrainedModel, loss: Tensor) -> Tensor:
    """All parameters' gradients in one float64 vector."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = [p.grad for p in model.parameters()]
    return torch.cat([g.flatten().double() for g in found if g is not None])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.norm() > 1e-3, "nothing was learnt: the comparison would be empty"
    return float((ours - theirs).norm() / theirs.norm())
