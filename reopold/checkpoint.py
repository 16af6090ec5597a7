"""Checkpoints: an ordinary Hugging Face folder that also holds all a run needs to go on.

    step-000075/config.json, model.safetensors, tokenizer files
    step-000075/trainer/state.pt      optimiser, scheduler, RNGs, cursor (tensors and plain data)
    step-000075/COMPLETE              written last; {"step", "digest"}

Written into a sibling folder, synced, renamed: a reader sees a whole checkpoint or none.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reopold.provenance import checkpoint_digest


def save_checkpoint(
    folder: Path, *, model: Any, tokenizer: Any, state: dict[str, Any], step: int
) -> None:
    """Write a checkpoint atomically.

    Args:
        state: picklable only by torch's weights_only loader: tensors, numbers, strings, containers.
        step: completed optimiser steps.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".step-*"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    (temporary / "trainer").mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    torch.save({**state, "rng": _rng_state()}, temporary / "trainer" / "state.pt")
    marker = {"step": step, "digest": checkpoint_digest(temporary)}
    (temporary / "COMPLETE").write_text(json.dumps(marker), encoding="utf-8")
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    if folder.exists():  # an incomplete folder of an older crash
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    _sync(folder.parent)


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint; RNGs are restored as a side effect.

    No pickle from disk is executed (`weights_only`).
    """
    state: dict[str, Any] = torch.load(
        folder / "trainer" / "state.pt", map_location="cpu", weights_only=True
    )
    _restore_rng(state.pop("rng"))
    return state


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_rng(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
