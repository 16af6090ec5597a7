"""Sizes without weights: against transformers' own classes and the models' pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from reopold.config import ConfigError
from reopold.engines.hf import cache_bytes_per_token, load_model
from reopold.provenance import parameter_count
from reopold.shapes import Shape, catalogue, known, shape_from, shape_of
from tests.reopold.tiny_vision import tiny_llava, tiny_qwen25_vl

DISTINCT = {shape.model_dump_json(): name for name, shape in catalogue().items()}


def built(shape: Shape) -> Any:
    """The model of these sizes, without weights."""
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.rows,
        "tie_word_embeddings": shape.tied,
    }
    with torch.device("meta"):
        if shape.vision is None:
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.kind, **text))
        tower = {
            "depth": shape.vision.depth,
            "hidden_size": shape.vision.hidden,
            "intermediate_size": shape.vision.intermediate,
            "out_hidden_size": shape.hidden,
        }
        config = AutoConfig.for_model(shape.kind, text_config=text, vision_config=tower)
        config.tie_word_embeddings = shape.tied
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("name", DISTINCT.values())
def test_parameters(name: str) -> None:
    shape = shape_of(name)
    model = built(shape)
    assert shape.parameters == model.num_parameters()
    assert shape.parameters == pytest.approx(1e9 * shape.stated, rel=0.01)
    if shape.vision:
        visual = model.model.visual
        projector = sum(p.numel() for p in visual.merger.parameters())
        assert shape.projector_parameters == projector
        assert shape.tower_parameters == sum(p.numel() for p in visual.parameters()) - projector
    # A hub id costs what it says, though its files are not here.
    assert parameter_count(name) == shape.parameters


def test_padding_rows_lie_behind_the_real_ids() -> None:
    for name, shape in catalogue().items():
        assert 0 < shape.ids <= shape.rows, name


def test_local_checkpoints(suite: Path, tmp_path: Path) -> None:
    for folder in (suite / "student-init", tiny_qwen25_vl(tmp_path / "vl")):
        model = load_model(str(folder), dtype="float32", device="cpu")
        shape = shape_of(str(folder))
        assert shape.parameters == model.num_parameters()
        # The catalogue's caches are of bfloat16, this one of float32.
        assert 2 * shape.cache_per_token == cache_bytes_per_token(model)


@pytest.mark.parametrize(
    ("kind", "sizes", "intermediate"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}, 128),
        ("opt", {"hidden_size": 32, "ffn_dim": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "vocab_size": 50, "word_embed_proj_dim": 32}, 96),
    ],
)  # fmt: skip
def test_configs_with_keys_of_their_own(
    tmp_path: Path, kind: str, sizes: dict[str, int], intermediate: int
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert (shape.hidden, shape.layers, shape.intermediate) == (32, 2, intermediate)
    assert shape.kv_heads == 4 and shape.positions > 0
    assert shape_from(known(model.config), 7, "it") == shape.model_copy(update={"counted": 7})


def test_defaults_that_a_config_does_not_write(tmp_path: Path) -> None:
    """Llava-1.5's text_config names only what differs from Llama's defaults."""
    folder = tiny_llava(tmp_path / "llava")
    written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    written["text_config"] = {"model_type": "llama", "vocab_size": 32064}
    (Path(folder) / "config.json").write_text(json.dumps(written), encoding="utf-8")
    shape = shape_of(str(folder))
    assert (shape.hidden, shape.layers, shape.rows) == (4096, 32, 32064)


def test_unknown_models_are_named() -> None:
    with pytest.raises(ConfigError, match=r"acme/llm-9b.*shapes\.yaml"):
        shape_of("acme/llm-9b")
    with pytest.raises(ConfigError, match=r"no checkpoint at \./nowhere"):
        shape_of("./nowhere")
