"""Untrained vision-language models of real architectures: folders as anybody's checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = (
    "<pad>",
    "<eos>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<image>",
    "<video>",
    "<vision_start>",
    "<vision_end>",
)
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz+-*=;#?. "
#: Of the text model; vLLM's kernels for CPUs take heads of 32.
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    names = (*SPECIAL, *CHARACTERS, "<unk>")
    backend = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[2:])})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_llava(
    folder: Path, *, image_size: int = 32, patch: int = 8, seed: int = 0, tie: bool = False
) -> Path:
    """Llava with a CLIP tower: (image_size / patch) ** 2 tokens an image, whatever its size."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen3Config,
    )

    tokenizer = tiny_tokenizer()
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=Qwen3Config(
            vocab_size=len(tokenizer), tie_word_embeddings=tie, **_ends(tokenizer)
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=tie,
    )
    config.text_config.architectures = ["Qwen3ForCausalLM"]
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _write(folder, LlavaForConditionalGeneration, config, tokenizer, processor, seed)


def tiny_qwen25_vl(
    folder: Path, *, patch: int = 14, max_pixels: int = 28 * 28 * 16, seed: int = 0
) -> Path:
    """Qwen2.5-VL: tokens by an image's size, positions of three axes."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    tokenizer = tiny_tokenizer()
    tower = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": patch,
        "window_size": 4 * patch,
        "fullatt_block_indexes": [1],
    }
    text = {
        **_ends(tokenizer),
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [4, 6, 6],
            "rope_theta": 10000.0,
        },
    }
    config = Qwen2_5_VLConfig(vision_config=tower, text_config=text, **_ids(tokenizer))
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, min_pixels=(2 * patch) ** 2, max_pixels=max_pixels
    )
    kind = Qwen2_5_VLForConditionalGeneration
    return _write(folder, kind, config, tokenizer, processor, seed)


def tiny_qwen2_vl(
    folder: Path, *, patch: int = 14, max_pixels: int = 28 * 28 * 16, seed: int = 0
) -> Path:
    """Qwen2-VL: as Qwen2.5-VL, with another tower."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    tokenizer = tiny_tokenizer()
    tower = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "patch_size": patch}
    text = {
        **_ends(tokenizer),
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [4, 6, 6],
            "rope_theta": 10000.0,
        },
    }
    config = Qwen2VLConfig(vision_config=tower, text_config=text, **_ids(tokenizer))
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, min_pixels=(2 * patch) ** 2, max_pixels=max_pixels
    )
    return _write(folder, Qwen2VLForConditionalGeneration, config, tokenizer, processor, seed)


def tiny_qwen3_vl(
    folder: Path, *, patch: int = 16, max_pixels: int = 32 * 32 * 16, seed: int = 0
) -> Path:
    """Qwen3-VL: as Qwen2.5-VL, with image features at several layers of the text model."""
    from transformers import (
        Qwen2VLImageProcessorPil,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    tokenizer = tiny_tokenizer()
    tower = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": patch,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {
        **_ends(tokenizer),
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [4, 6, 6],
            "mrope_interleaved": True,
            "rope_theta": 10000.0,
        },
    }
    config = Qwen3VLConfig(vision_config=tower, text_config=text, **_ids(tokenizer))
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, min_pixels=(2 * patch) ** 2, max_pixels=max_pixels
    )
    kind = Qwen3VLForConditionalGeneration
    return _write(folder, kind, config, tokenizer, processor, seed)


def noise_image(file: Path, width: int, height: int, seed: int) -> Path:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def _ends(tokenizer: Any) -> dict[str, Any]:
    return {
        **TEXT,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<image>",
        "video_token_id": "<video>",
        "vision_start_token_id": "<vision_start>",
        "vision_end_token_id": "<vision_end>",
    }
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def _write(folder: Path, kind: Any, config: Any, tokenizer: Any, processor: Any, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
