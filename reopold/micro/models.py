"""Small Qwen3 models from a config, saved as ordinary Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MAX_POSITIONS = 128
#: vLLM's CPU attention has no kernel for narrower heads.
HEAD_DIM = 32


def qwen3_config(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int) -> Qwen3Config:
    """A Qwen3 of `width` hidden units and `layers` layers."""
    heads = width // (16 if width % 16 == 0 else 8)
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int, seed: int
) -> Qwen3ForCausalLM:
    """An untrained Qwen3, float32."""
    config = qwen3_config(tokenizer, width=width, layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
