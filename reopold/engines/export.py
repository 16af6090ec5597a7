"""The student's weights as another engine takes them: head and embedding apart, real ids only.

With `tie_word_embeddings` vLLM's reload keeps the old output head and says so in a log line only.
So the head always travels by itself and the serving config never ties: the bug cannot happen.
Padding rows are cut off: they would take probability in the engine and none in the trainer.
An image token that was sampled is no image, and stands for what it does in the trainer's input.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from reopold.vision import copy_processor, filler, sees


def serving_weights(
    model: PreTrainedModel, vocab_size: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in a checkpoint, in `dtype`, of real vocabulary rows."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    seeing = sees(model.config)
    rows = (embedding.weight, head.weight, getattr(head, "bias", None))
    vocabulary = {part.data_ptr() for part in rows if part is not None}
    weights: Any = model.state_dict()
    state: dict[str, Tensor] = revert_weight_conversion(model, weights)
    for name, tensor in state.items():
        real = tensor[:vocab_size] if tensor.data_ptr() in vocabulary else tensor
        if seeing and tensor.data_ptr() == embedding.weight.data_ptr() and "lm_head" not in name:
            real, image = real.clone(), model.config.image_token_id
            real[image] = real[filler(image)]
        yield name, real.detach().to(dtype)


def head_sum(model: PreTrainedModel, vocab_size: int, dtype: torch.dtype) -> float:
    """Sum of |w| over the output head as it is served: what a worker must find in its own."""
    head = model.get_output_embeddings().weight[:vocab_size].detach()
    return float(head.to(dtype).double().abs().sum())


def serving_config(model: PreTrainedModel, vocab_size: int, dtype: torch.dtype) -> dict[str, Any]:
    config: dict[str, Any] = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    text = config.get("text_config") or config
    text.update(vocab_size=vocab_size, tie_word_embeddings=False)
    config.update(tie_word_embeddings=False, dtype=str(dtype).removeprefix("torch."))
    return config


def write_weights(
    model: PreTrainedModel, folder: Path, *, version: int, vocab_size: int, dtype: torch.dtype
) -> None:
    """What a worker reads in an update: the weights, and which version they are."""
    weights = {
        # A head that is tied shares memory with the embedding, which safetensors refuses.
        name: tensor.contiguous().clone()
        for name, tensor in serving_weights(model, vocab_size, dtype)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "weights.json").write_text(json.dumps({"version": version}), encoding="utf-8")


def export(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    *,
    version: int,
    vocab_size: int,
    dtype: torch.dtype,
    processor: str = "",
) -> Path:
    """Write a checkpoint for serving; `folder` appears whole or not at all.

    Args:
        processor: folder or hub id whose image processor belongs to the model; empty without one.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_weights(model, temporary, version=version, vocab_size=vocab_size, dtype=dtype)
    config = serving_config(model, vocab_size, dtype)
    (temporary / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(temporary)
    if processor:
        copy_processor(processor, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder
