"""Whether an engine holds the weights that the trainer handed to it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from reopold.data.images import Image, find_image
from reopold.engines.base import Engine, EngineFailure
from reopold.engines.export import head_sum
from reopold.logprobs import Head
from reopold.rollouts import Rollout
from reopold.scoring import score
from reopold.vision import Vision

#: Largest |difference| in nats of a fixed prompt's log-probs, by the engine's dtype. Kernels differ
#: by 1e-6 in float32 and by 1e-2 and more in bfloat16.
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
#: Ids of the fixed prompt.
PROBE_TOKENS = 16


@dataclass(frozen=True)
class Handover:
    """What the workers of an engine must say after it took over `model`."""

    model: PreTrainedModel
    vocab_size: int
    dtype: torch.dtype

    def check(self, states: Sequence[Mapping[str, Any]], version: int) -> int:
        """The version that every worker read back.

        Raises:
            EngineFailure: a worker holds another version, a tied or a stale head, or other ids.
        """
        for state in states:
            if int(state["version"]) != version:
                raise EngineFailure(
                    f"an engine worker holds weight version {state['version']}, not {version}"
                )
            if state["tied"]:
                raise EngineFailure("an engine worker ties its head: an update would not reach it")
            if int(state["vocab_size"]) != self.vocab_size:
                raise EngineFailure(
                    f"an engine worker samples from {state['vocab_size']} ids, the tokenizer has "
                    f"{self.vocab_size}"
                )
        found = math.fsum(float(state["head_sum"]) for state in states)
        meant = head_sum(self.model, self.vocab_size, self.dtype)
        if not math.isclose(found, meant, rel_tol=1e-9):
            raise EngineFailure(
                f"the engine's output head is not the one of version {version}: its weights sum to "
                f"{found!r}, the trainer's to {meant!r}"
            )
        return version


def probe_gap(
    engine: Engine, model: PreTrainedModel, head: Head, vision: Vision | None = None
) -> float:
    """Largest |difference| in nats of a fixed prompt's log-probs: engine against trainer; of a
    model that takes images, also of the prompt with a fixed image."""
    real = head.vocab_size or len(head.weight_VD)
    ids = [int(i) for i in (torch.arange(1, PROBE_TOKENS + 1) * 7919) % real]
    if vision is not None:
        ids = vision.harmless(ids)
    probes = [Rollout(ids[:1], ids[1:], [], "length")]
    with tempfile.TemporaryDirectory(prefix="reopold-") as folder:
        if vision is not None:
            shown = [vision.image_token_id, *ids[:1]]
            image = probe_image(Path(folder) / "probe.png")
            probes.append(Rollout(shown, ids[1:], [], "length", images=(image,)))
        engine_N = engine.score(probes).logprobs_N
        trained = score(model, probes, head=head, micro_batch=1, vision=vision)
    return float((engine_N.cpu() - trained.logprobs_N.cpu()).abs().max())


def probe_image(file: Path) -> Image:
    """A picture of 256 x 256 greys, written to `file`."""
    from PIL import Image as Pillow

    Pillow.radial_gradient("L").save(file)
    return find_image(str(file))


def hand_over(
    engine: Engine,
    model: PreTrainedModel,
    head: Head,
    version: int,
    dtype: torch.dtype,
    vision: Vision | None = None,
) -> float:
    """Give an engine the trainer's weights and make sure that it samples from them.

    Args:
        vision: of the model; None for a text model.

    Returns:
        The gap on the fixed prompt, nats.

    Raises:
        EngineFailure: the version read back, the head or the fixed prompt's log-probs differ.
    """
    held = engine.update_weights(model, version)
    if held != version:
        raise EngineFailure(f"the engine holds weight version {held}, not {version}")
    gap = probe_gap(engine, model, head, vision)
    limit = PROBE_TOLERANCE.get(dtype, max(PROBE_TOLERANCE.values()))
    if not gap <= limit:
        raise EngineFailure(
            f"after the weights of step {version} were handed over, engine and trainer differ by "
            f"{gap:.3g} nats on a fixed prompt (limit {limit:g} in {dtype}): the engine does not "
            "sample from the weights that are trained"
        )
    return gap
