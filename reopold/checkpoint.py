"""Checkpoints: an ordinary Hugging Face folder that also holds all a run needs to go on.

    step-000075/config.json, model.safetensors, tokenizer files
    step-000075/trainer/state.json           counters, cursor, phase, RNGs, optimiser settings
    step-000075/trainer/state.safetensors    optimiser moments, RNG states, a step under way
    step-000075/trainer/config.json          the recipe that it was made with
    step-000075/trainer/*.jsonl              the logs as they were
    step-000075/MANIFEST.json, COMPLETE      see :mod:`reopold.integrity`

Copied at one moment, written into a sibling folder, synced, renamed: a reader sees a whole
checkpoint or none, and training goes on meanwhile. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reopold.integrity import seal, sync
from reopold.vision import copy_processor


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, copied, so that its writer and the trainer share nothing.

    Args:
        folder: of the checkpoint.
        step: completed optimiser steps.
        weights: of the model, on the CPU.
        state: tensors on the CPU, numbers, strings, and lists and dicts of them.
        recipe: canonical JSON.
        logs: bytes of each log file that belong to it.
    """

    folder: Path
    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    recipe: str
    logs: dict[Path, int]


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU; tensors that share memory (a tied head) go on sharing it."""
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    copies = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.shape, value.stride())
        if place not in seen:
            seen[place] = value.detach().to("cpu", copy=True)
        copies[name] = seen[place]
    return copies


def write_checkpoint(snapshot: Snapshot, model: Any, tokenizer: Any, processor: str = "") -> None:
    """Write a checkpoint; it appears whole or not at all.

    Args:
        model: its class and config only; the weights are the snapshot's.
        processor: folder or hub id whose image processor belongs to the model; empty without one.

    Raises:
        OSError: the disk is full, or the folder cannot be written; nothing is left of it.
    """
    folder = snapshot.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".step-*"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        own = temporary / "trainer"
        own.mkdir(parents=True)
        model.save_pretrained(temporary, state_dict=snapshot.weights)
        tokenizer.save_pretrained(temporary)
        if processor:
            copy_processor(processor, temporary)
        plain, tensors = split(snapshot.state)
        (own / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        save_file(tensors, own / "state.safetensors")
        (own / "config.json").write_text(snapshot.recipe, encoding="utf-8")
        for file, size in snapshot.logs.items():
            _copy_start(file, own / file.name, size)
        seal(temporary, snapshot.step)
        if folder.exists():  # of an earlier start: the same steps were made again
            os.rename(folder, folder.with_name(f".{folder.name}.old"))
        os.rename(temporary, folder)
        sync(folder.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        # Libraries wrap a full disk in errors of their own (safetensors: SafetensorError).
        raise OSError(f"{folder} could not be written: {error}") from error
    shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint, as it was given to :func:`write_checkpoint`."""
    own = folder / "trainer"
    plain = json.loads((own / "state.json").read_text(encoding="utf-8"))
    state: dict[str, Any] = join(plain, load_file(own / "state.safetensors"))
    return state


def split(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts and lists without their tensors, and the tensors by the path to them."""
    if isinstance(tree, Tensor):
        return {"tensor": name}, {name: tree.contiguous().clone()}
    if isinstance(tree, dict):
        parts = {
            str(key): split(value, f"{name}.{key}" if name else str(key))
            for key, value in tree.items()
        }
        tensors = {n: t for _, found in parts.values() for n, t in found.items()}
        return {key: plain for key, (plain, _) in parts.items()}, tensors
    if isinstance(tree, list | tuple):
        rows = [split(value, f"{name}.{i}") for i, value in enumerate(tree)]
        return [plain for plain, _ in rows], {n: t for _, found in rows for n, t in found.items()}
    return tree, {}


def join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of :func:`split`; keys of dicts are strings, tuples are lists."""
    if isinstance(plain, dict):
        if plain.keys() == {"tensor"}:
            return tensors[plain["tensor"]]
        return {key: join(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [join(value, tensors) for value in plain]
    return plain


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Moments, copied to the CPU, and settings."""
    state = optimizer.state_dict()
    moments = {
        index: {key: value.detach().to("cpu", copy=True) for key, value in moment.items()}
        for index, moment in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over the moments. The settings stay those of today's recipe, which may have changed."""
    moments = {int(index): moment for index, moment in state["state"].items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def rng_state() -> dict[str, Any]:
    """Of Python, NumPy and torch. The sampler's is a function of (seed, step): nothing to keep."""
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


def seed_all(seed: int) -> None:
    """Python's, NumPy's and torch's global generators, whoever may draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_rng(state: Mapping[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _copy_start(source: Path, target: Path, size: int) -> None:
    """The first `size` bytes of a log, whose later lines belong to later steps."""
    with open(source, "rb") as read, open(target, "wb") as write:
        while size and (block := read.read(min(size, 1 << 20))):
            write.write(block)
            size -= len(block)
