"""Two things that make decoding in plain PyTorch cheap: room in the cache, and grouped heads.

Axes: B live sequences, H heads of keys and values, Q query heads a key head serves, L length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

#: Name under which :func:`grouped_attention` is known to transformers.
ATTENTION = "reopold_sdpa"
#: Positions by which a full cache grows, and at least half of its length.
GROWTH = 32


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in a buffer with room to grow.

    DynamicLayer copies the whole cache for every new token; here a token is written in place.
    `keys` and `values` are views of the positions that are filled.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room: tuple[Tensor, Tensor] = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.room[0].shape[-2]:
            self.room = (_grown(self.room[0], start, end), _grown(self.room[1], start, end))
        self.room[0][:, :, start:end] = key_states
        self.room[1][:, :, start:end] = value_states
        self.keys, self.values = self.room[0][:, :, :end], self.room[1][:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.get_seq_length() > 0:
            end = self.get_seq_length()
            self.room = (self.room[0][indices], self.room[1][indices])
            self.keys, self.values = self.room[0][:, :, :end], self.room[1][:, :, :end]


def _grown(part: Tensor, start: int, end: int) -> Tensor:
    length = end + max(GROWTH, start // 2)
    grown = part.new_empty(*part.shape[:2], length, part.shape[-1])
    grown[:, :, :start] = part[:, :, :start]
    return grown


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own kind of cache, with room in every layer that attends to all positions."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    layers: list[Any] = cache.layers
    roomy: Any = RoomyLayer
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in layers]
    return cache


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention; for one new token, without a copy of keys a query head.

    The query heads that share a key head become the query positions of one small attention: for
    a single new token there is nothing causal to keep. `repeat_kv` would copy the whole cache.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    plain = kwargs.get("position_bias") is None and kwargs.get("cache") is None
    if query.shape[2] > 1 or groups == 1 or not plain or kwargs.get("dropout"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    rows, heads, _, width = query.shape
    query_BHQD = query.view(rows, heads // groups, groups, width)
    out_BHQD = torch.nn.functional.scaled_dot_product_attention(
        query_BHQD, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out_BHQD.reshape(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Where the model runs on SDPA; elsewhere (Gemma 2's soft cap is eager) it is left alone."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
