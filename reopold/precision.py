"""How the student's layers are computed: number format, and what is kept for the backward pass.

Weights, AdamW's moments, log-probs and gradients of the weights are float32 in any case: at a
learning rate of 1e-6 bfloat16 weights would not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from reopold.config import ConfigError, TrainConfig


def prepare(model: PreTrainedModel, config: TrainConfig, name: str) -> None:
    """Set a student up for :func:`layer_passes`.

    With bfloat16, products of float32 matrices on a GPU (the head's, AdamW has none) are made in
    TF32, whose inputs are no coarser than the bfloat16 hidden states they come from.

    Raises:
        ConfigError: the model's layers cannot be computed again.
    """
    if config.precision == "bfloat16" and model.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    if config.recompute_layers:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"train.recompute_layers: transformers cannot compute the layers of {name} again "
                "(supports_gradient_checkpointing); set it to false and lower train.micro_batch"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})


@contextmanager
def layer_passes(model: PreTrainedModel, config: TrainConfig) -> Iterator[None]:
    """Within it, the layers of a prepared student are computed as the recipe says. The head is not
    to be: its logits stay float32."""
    # A cache of bfloat16 weights would outlive the layers that are to be computed again.
    autocast = torch.autocast(
        model.device.type,
        torch.bfloat16,
        enabled=config.precision == "bfloat16",
        cache_enabled=not config.recompute_layers,
    )
    with autocast, _recomputing(model, config.recompute_layers and torch.is_grad_enabled()):
        yield


@contextmanager
def _recomputing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """transformers recomputes the layers of a model in training mode. Only they are in it, and only
    here: dropout stays off, and sampling from the same model keeps its cache."""
    modules = model.modules() if wanted else ()
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
