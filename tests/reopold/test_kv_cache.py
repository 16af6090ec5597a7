"""The roomy cache against transformers' own, and grouped attention against plain attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reopold.engines.kv_cache import GROWTH, RoomyLayer, grouped_attention


def test_the_roomy_layer_holds_what_the_plain_one_holds() -> None:
    """Past the room it starts with, and through rows that leave in between."""
    generator = torch.Generator().manual_seed(4)
    plain, roomy = DynamicLayer(), RoomyLayer()  # type: ignore[no-untyped-call]
    rows = 6
    for t in range(3 * GROWTH):
        new = torch.randn(2, rows, 2, 5 if t == 0 else 1, 4, generator=generator)
        theirs, ours = plain.update(new[0], new[1]), roomy.update(new[0], new[1])
        assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1])
        assert plain.get_seq_length() == roomy.get_seq_length() == 5 + t
        if t in (10, 40, 70):
            kept = torch.arange(rows)[torch.arange(rows) != t % rows]
            rows -= 1
            plain.batch_select_indices(kept)
            roomy.batch_select_indices(kept)


@pytest.mark.parametrize("padded", [False, True])
def test_grouped_heads_are_plain_attention(padded: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(3, 6, 1, 8, generator=generator)
    key, value = torch.randn(2, 3, 2, 11, 8, generator=generator)
    mask = None
    if padded:
        mask = torch.ones(3, 1, 1, 11, dtype=torch.bool)
        mask[1, ..., :4] = False
    module: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    ours, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert torch.allclose(ours, theirs, atol=1e-6)
