"""Images in front of a model: how many tokens each takes, and the tensors that stand for it.

A prompt holds one placeholder id an image. Student and teacher may have vision towers of different
resolutions: each expands the placeholders by its own processor, so that positions differ between
the two while the response's tokens are the same ids. What a processor made of an image is kept,
under the hash of the image's file.

Axes: B rows of a batch, L padded length of the expanded ids, A axes of a rotary position.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reopold.config import ConfigError
from reopold.data.images import load_image
from reopold.data.tokenizers import render

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from reopold.data.images import Image
    from reopold.data.prompts import Prompt

#: Model types whose image inputs are known here, each compared with its own forward pass by a test.
#: Another model with a vision tower (Gemma 3 looks both ways within an image, say) reads text only.
SUPPORTED = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Prompts of most images whose room is worked out before a run starts.
LARGEST = 8
#: Processed images that are kept, bytes.
CACHE_BYTES = 2 * 2**30
#: What a checkpoint's folder says about its processor.
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class _Seen:
    """What a processor made of an image."""

    positions: int
    """That it takes among the token ids."""
    tensors: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Placed:
    """A batch's images in front of a model."""

    inputs: dict[str, Tensor]
    """For `model.base_model`, beside the ids."""
    deltas_B: Tensor | None
    """Models with positions of several axes: a token's position is its index plus this."""


@dataclass
class Vision:
    """The image processor of a vision-language model, and what it made of the images so far."""

    model: PreTrainedModel
    processor: Any
    """`processor(text=, images=)` where the model has a whole one, else the image processor."""
    source: str
    """Folder or hub id that the processor comes from."""
    image_token_id: int
    seen: OrderedDict[str, _Seen] = field(default_factory=OrderedDict)
    held: int = 0
    """Bytes of what is seen."""
    lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, model: PreTrainedModel, folder: str) -> Vision | None:
        """The processor in a checkpoint's folder (or of a hub id); None where :func:`sees` is not.

        Raises:
            ConfigError: the model takes images, and there is no processor for them.
        """
        if not sees(model.config):
            return None
        return cls(model, load_processor(folder), folder, int(model.config.image_token_id))

    def expand(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """The prompt with every placeholder id as many times as the image takes positions.

        Raises:
            ConfigError: there is not one placeholder an image (an image token in the text, say),
                an image cannot be read, or the model has fewer positions.
        """
        check_placeholders(prompt_ids, images, self.image_token_id)
        if not images:
            return list(prompt_ids)
        counts = iter([self._look(image).positions for image in images])
        expanded: list[int] = []
        for token in prompt_ids:
            expanded += [token] * (next(counts) if token == self.image_token_id else 1)
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and len(expanded) >= most:
            raise ConfigError(
                f"a prompt of {len(images)} images takes {len(expanded)} tokens of the {most} that "
                "the model has: use fewer or smaller images"
            )
        return expanded

    def check(self, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that could not be sampled from, before any work is done: all of them by
        their text, the largest few with their images.

        Raises:
            ConfigError: names the prompt.
        """
        largest = sorted(prompts, key=lambda prompt: -len(prompt.images))[:LARGEST]
        for prompt in prompts:
            images = prompt.images
            try:
                ids = render(tokenizer, prompt.messages, images=len(images))
                if prompt in largest or ids.count(self.image_token_id) != len(images):
                    self.expand(ids, images)
            except ConfigError as error:
                raise ConfigError(f"prompt {prompt.id}: {error}") from error

    def freeze(self) -> None:
        """Keep the vision tower as it is. What joins it to the text model goes on learning."""
        for name, parameter in self.model.named_parameters():
            inside = "vision_tower." in name or "visual." in name
            parameter.requires_grad_(not inside or "merger" in name)

    @property
    def filler(self) -> int:
        """An id that asks for no image. It pads, and it stands in the input where a response has
        the image token: sampled, it is a token like any other, but no image belongs there."""
        return filler(self.image_token_id)

    def harmless(self, response_ids: Sequence[int]) -> list[int]:
        """A response's ids as they go into a model."""
        return [self.filler if id_ == self.image_token_id else id_ for id_ in response_ids]

    def place(
        self,
        rows: Sequence[Sequence[int]],
        images: Sequence[Sequence[Image]],
        *,
        length: int,
        left: bool = False,
    ) -> Placed:
        """What `model.base_model` needs beside the ids of expanded rows: pixels, grids, positions.

        Args:
            rows: expanded ids, unpadded.
            images: of each row, in order.
            length: to which the rows are padded.
            left: whether the padding stands before the rows.
        """
        looks = [self._look(image) for of_row in images for image in of_row]
        device, dtype = self.model.device, self.model.dtype
        inputs: dict[str, Tensor] = {}
        for name in looks[0].tensors if looks else ():
            joined = torch.cat([look.tensors[name] for look in looks])
            inputs[name] = joined.to(device, dtype if joined.is_floating_point() else None)
        index: Any = getattr(self.model.base_model, "get_rope_index", None)
        if index is None:
            return Placed(inputs, None)
        positions_ABL = torch.zeros(3, len(rows), length, dtype=torch.long)
        deltas_B = torch.zeros(len(rows), dtype=torch.long)
        for row, (ids, of_row) in enumerate(zip(rows, images, strict=True)):
            where = slice(length - len(ids), length) if left else slice(0, len(ids))
            positions_AL, deltas_B[row] = self._positions(index, ids, of_row)
            positions_ABL[:, row, where] = positions_AL
        inputs["position_ids"] = positions_ABL.to(device)
        return Placed(inputs, deltas_B.to(device))

    def _positions(
        self, index: Any, ids: Sequence[int], images: Sequence[Image]
    ) -> tuple[Tensor, int]:
        """The model's own positions [A, L] of one row, without padding, and what is added later.

        They are asked for by row and always handed over: what the model remembers of an earlier
        batch must not reach this one.
        """
        if not images:
            return torch.arange(len(ids)).expand(3, -1), 0
        ids_BL = torch.tensor([list(ids)])
        grids = torch.cat([self._look(image).tensors["image_grid_thw"] for image in images])
        kinds_BL = (ids_BL == self.image_token_id).int()
        positions_ABL, delta_B1 = index(ids_BL, mm_token_type_ids=kinds_BL, image_grid_thw=grids)
        return positions_ABL[:, 0], int(delta_B1[0, 0])

    def _look(self, image: Image) -> _Seen:
        """What the processor makes of an image, from the cache if it is there."""
        with self.lock:
            if image.digest in self.seen:
                self.seen.move_to_end(image.digest)
                return self.seen[image.digest]
        look = self._process(image)
        with self.lock:
            if image.digest not in self.seen:  # another thread may have been faster
                self.seen[image.digest] = look
                self.held += look.bytes
            while len(self.seen) > 1 and self.held > CACHE_BYTES:
                self.held -= self.seen.popitem(last=False)[1].bytes
        return look

    def _process(self, image: Image) -> _Seen:
        images = getattr(self.processor, "image_processor", self.processor)
        picture = load_image(image.path)
        made = images(images=[picture], return_tensors="pt")
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        if "image_grid_thw" in tensors:  # Qwen-VL: patches, merged by squares
            patches = int(tensors["image_grid_thw"].prod())
            return _Seen(patches // images.merge_size**2, tensors)
        text = self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        ids = self.processor(text=[text], images=[picture])["input_ids"][0]
        return _Seen(list(ids).count(self.image_token_id), tensors)


def sees(config: PreTrainedConfig) -> bool:
    """Whether a model takes images here; every model takes text."""
    return config.model_type in SUPPORTED


def takes_images(path: str) -> bool:
    """Whether the model of a checkpoint's folder or hub id is one that :func:`sees`.

    Raises:
        ConfigError: there is none, or its config cannot be read.
    """
    from transformers import AutoConfig

    try:
        return sees(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"checkpoint {path} cannot be loaded: {reason}") from error


def image_token(folder: str) -> int | None:
    """Id that stands for an image in the prompts of a checkpoint; None for a text model.

    Raises:
        ConfigError: no model is there that transformers knows.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"checkpoint {folder} cannot be loaded: {reason}") from error
    seen = getattr(config, "vision_config", None) is not None
    return int(config.image_token_id) if seen else None


def filler(image_token_id: int) -> int:
    """See :attr:`Vision.filler`."""
    return 1 if image_token_id == 0 else 0


def expanded(
    prompt_ids: Sequence[int], images: Sequence[Image], vision: Vision | None
) -> list[int]:
    """The prompt as it goes into a model: :meth:`Vision.expand`, or as it is for a text model.

    Raises:
        ConfigError: the model cannot take the images.
    """
    if vision is not None:
        return vision.expand(prompt_ids, images)
    check_placeholders(prompt_ids, images, None)
    return list(prompt_ids)


def check_placeholders(
    prompt_ids: Sequence[int], images: Sequence[Image], image_token_id: int | None
) -> None:
    """Refuse a prompt without exactly one placeholder id an image.

    Args:
        image_token_id: None for a text model.

    Raises:
        ConfigError: as above.
    """
    if image_token_id is None:
        if images:
            raise ConfigError("a prompt has images, which this model does not take")
        return
    asked = list(prompt_ids).count(image_token_id)
    if asked != len(images):
        raise ConfigError(
            f"a prompt has {asked} image tokens for {len(images)} images: write <image> where "
            "an image belongs, and no image token of the model's own anywhere"
        )


def load_processor(folder: str) -> Any:
    """A model's processor. Without torchvision Qwen-VL's cannot be made whole, because of its
    video half: then its image processor alone.

    Raises:
        ConfigError: there is neither.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(folder)
        if hasattr(processor, "image_processor"):
            return processor
    except (OSError, ValueError, KeyError, ImportError):
        pass
    try:
        return AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no image processor at {folder}: {reason}") from error


def copy_processor(source: str, folder: Path) -> None:
    """A processor's files, as they are, from a checkpoint's folder or hub id into a folder."""
    from transformers.utils.hub import cached_file

    for name in PROCESSOR_FILES:
        found = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copyfile(found, folder / name)
