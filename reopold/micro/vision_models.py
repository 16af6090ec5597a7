"""Small vision-language models from a config (Llava: CLIP tower, Qwen3), as ordinary folders.

The two roles see a picture in different resolutions, so that it takes a different number of
positions in each: what student and teacher share are the ids of the response alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import PILImageResampling

from reopold.data.images import PLACEHOLDER
from reopold.micro.drawing import SIDE
from reopold.micro.models import HEAD_DIM, qwen3_config

Role = Literal["teacher", "student"]
#: Pixels a side that a model sees of a picture: a cell is one patch of the student's, four of the
#: teacher's.
RESOLUTION: dict[Role, int] = {"student": SIDE // 2, "teacher": SIDE}
PATCH = 16
TOWER_WIDTH, TOWER_LAYERS = 64, 1
#: Of the pixels: paper is 0, so that a patch is what is drawn in it.
MEAN, STD = 1.0, 1.0
#: Of the patches' weights. With CLIP's own 0.02 a step of Adam, which moves the hundreds of weights
#: that meet ink together, changes more than is there: the tower was blind for good at lr 2.5e-3.
TOWER_INIT = 0.1


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, role: Role, width: int, layers: int, seed: int
) -> LlavaForConditionalGeneration:
    """An untrained Llava, float32, whose Qwen3 has `width` hidden units and `layers` layers."""
    tower = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=TOWER_WIDTH // HEAD_DIM,
        image_size=RESOLUTION[role],
        patch_size=PATCH,
        initializer_range=TOWER_INIT,
    )
    text = qwen3_config(tokenizer, width=width, layers=layers)
    text.architectures = ["Qwen3ForCausalLM"]  # how vLLM knows which of its models that is
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[PLACEHOLDER],
        image_seq_length=(RESOLUTION[role] // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def save_model(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Weights, tokenizer, and the processor with its chat template."""
    tower: Any = model.config.vision_config
    size = {"height": tower.image_size, "width": tower.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=size,
            crop_size=size,
            resample=PILImageResampling.BOX,  # others blur a cell's edge into the next
            image_mean=[MEAN] * 3,
            image_std=[STD] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy leaves out
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
