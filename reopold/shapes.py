"""Sizes of models by name, without their weights and without torch.

Local checkpoints are read from their own config.json; hub ids are looked up in shapes.yaml, so that
a recipe is checked and costed on a machine that cannot reach the hub.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from reopold.config import ConfigError, is_local

CATALOGUE = Path(__file__).with_name("shapes.yaml")
#: Weights of a patch of Qwen2.5-VL: 2 frames x 3 colours x 14 x 14.
PATCH, MERGED = 2 * 3 * 14 * 14, 4
#: Keys of config.json, by our names.
_KEYS = {
    "hidden": "hidden_size", "intermediate": "intermediate_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "rows": "vocab_size",
    "tied": "tie_word_embeddings", "positions": "max_position_embeddings",
}  # fmt: skip


class Tower(BaseModel):
    """A vision tower of Qwen2.5-VL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int
    hidden: int
    intermediate: int


class Shape(BaseModel):
    """What decides a decoder's parameters, cache and activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """`model_type` of its config.json."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int = 0
    """0: hidden / heads."""
    rows: int
    """Of the embedding and the head, padding included."""
    tied: bool
    positions: int
    """Longest prompt and response."""
    tokenizer: str = ""
    """Models of equal name have the same ids; empty: not known."""
    ids: int = 0
    """Real ids; 0: not known."""
    stated: float = 0.0
    """1e9 parameters, as the model's page says; 0: it does not."""
    counted: int = 0
    """Parameters as the weights' headers have them; 0: from the sizes."""
    vision: Tower | None = None

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values, of one layer."""
        return self.kv_heads * (self.head_width or self.hidden // self.heads)

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of one position in bfloat16."""
        return 2 * 2 * self.layers * self.kv_width

    @property
    def head_parameters(self) -> int:
        return self.rows * self.hidden

    @property
    def tower_parameters(self) -> int:
        """Of the vision tower, which model.freeze_vision leaves as it is."""
        tower = self.vision
        if tower is None:
            return 0
        d, i = tower.hidden, tower.intermediate
        block = 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (3 * d * i + 2 * i + d)
        return PATCH * d + tower.depth * block

    @property
    def projector_parameters(self) -> int:
        """Between tower and decoder."""
        if self.vision is None:
            return 0
        d, merged = self.vision.hidden, MERGED * self.vision.hidden
        return d + (merged * merged + merged) + (merged * self.hidden + self.hidden)

    @property
    def parameters(self) -> int:
        """Of Qwen2 and Qwen2.5-VL by their sizes; of local checkpoints as counted."""
        if self.counted:
            return self.counted
        h, kv = self.hidden, self.kv_width
        attention = (h * h + h) + 2 * (h * kv + kv) + h * h
        layer = attention + 3 * h * self.intermediate + 2 * h
        heads = self.head_parameters * (1 if self.tied else 2)
        return heads + self.layers * layer + h + self.tower_parameters + self.projector_parameters


@cache
def catalogue() -> dict[str, Shape]:
    """By hub id."""
    entries: dict[str, Any] = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {name: Shape.model_validate(entry) for name, entry in entries.items()}


def shape_of(path: str) -> Shape:
    """The shape of a local checkpoint, or of a model that the catalogue has.

    Raises:
        ConfigError: there is no checkpoint, its config lacks a size, or the hub id is not in the
            catalogue.
    """
    if not is_local(path):
        found = catalogue().get(path)
        if found is None:
            raise ConfigError(
                f"the sizes of {path} are not known here: add it to reopold/shapes.yaml (from its "
                "config.json), or name a local folder"
            )
        return found
    from reopold.provenance import parameter_count

    try:
        raw = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no checkpoint at {path}: {error}") from error
    counted = int(parameter_count(Path(path).expanduser()))
    try:
        return shape_from(raw, counted, path)
    except ConfigError:  # keys of its own, or defaults that are not written
        from transformers import AutoConfig

        return shape_from(known(AutoConfig.from_pretrained(Path(path).expanduser())), counted, path)


def known(config: Any) -> dict[str, Any]:
    """A transformers config as :func:`shape_from` reads it: defaults filled in, GPT-2's `n_embd`
    and its like under the usual names."""
    text = config.get_text_config()
    found = {key: getattr(text, key, None) for key in (*_KEYS.values(), "head_dim")}
    for other in ("ffn_dim", "n_inner"):
        found["intermediate_size"] = found["intermediate_size"] or getattr(text, other, None)
    if found["hidden_size"]:
        found["intermediate_size"] = found["intermediate_size"] or 4 * found["hidden_size"]
    return {**found, "model_type": config.model_type}


def shape_from(raw: dict[str, Any], counted: int, path: str) -> Shape:
    """The shape of a model by its config.json and the number of its parameters.

    Raises:
        ConfigError: a size is missing.
    """
    text = {**raw, **(raw.get("text_config") or {})}
    text["num_key_value_heads"] = text.get("num_key_value_heads") or text.get("num_attention_heads")
    text["tie_word_embeddings"] = bool(text.get("tie_word_embeddings"))
    missing = [key for key in _KEYS.values() if text.get(key) is None]
    if missing:
        raise ConfigError(f"{path}: its config.json has no {', '.join(missing)}")
    sizes = {name: text[key] for name, key in _KEYS.items()}
    width = int(text.get("head_dim") or 0)
    return Shape(kind=str(raw["model_type"]), counted=counted, head_width=width, **sizes)
