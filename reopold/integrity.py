"""Whether a checkpoint folder holds what was written to it. Importable without torch.

    step-000075/MANIFEST.json    bytes and SHA-256 of every file, the step, the weights' digest
    step-000075/COMPLETE         written last: the step, the digest, and SHA-256 of MANIFEST.json
    step-000075/PRUNED           in its place where the retention has removed the rest

A folder without COMPLETE never was a checkpoint. One whose files do not match is damaged: it is set
aside under another name, never deleted and never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST, COMPLETE, PRUNED = "MANIFEST.json", "COMPLETE", "PRUNED"


def seal(folder: Path, step: int) -> None:
    """Write the manifest of a folder, sync every file to disk, and mark it complete."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, COMPLETE)
    }
    digest = weights_digest({name: str(entry["sha256"]) for name, entry in files.items()})
    manifest = {"step": step, "digest": digest, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    for path in folder.rglob("*"):
        sync(path)
    (folder / COMPLETE).write_text(_marker(folder / MANIFEST), encoding="utf-8")
    sync(folder / COMPLETE)
    sync(folder)


def faults(folder: Path, *, quick: bool = False) -> list[str]:
    """What is wrong with a checkpoint; nothing if it is whole.

    Args:
        quick: compare the sizes of files only, not their SHA-256.
    """
    if not (folder / COMPLETE).exists():
        return [f"{COMPLETE} is missing: it was never finished"]
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files: dict[str, dict[str, Any]] = manifest["files"]
        if (folder / COMPLETE).read_text(encoding="utf-8") != _marker(folder / MANIFEST):
            return [f"{COMPLETE} does not belong to {MANIFEST}: one of the two is damaged"]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} or {COMPLETE} is damaged: {error}"]
    found = (_fault(folder / name, entry, quick) for name, entry in sorted(files.items()))
    return [fault for fault in found if fault]


def quarantine(folder: Path) -> Path:
    """Set a damaged checkpoint aside, under a name that nothing reads."""
    place, number = folder.with_name(f"damaged-{folder.name}"), 2
    while place.exists():
        place, number = folder.with_name(f"damaged-{folder.name}-{number}"), number + 1
    os.rename(folder, place)
    sync(folder.parent)
    return place


def marker(folder: Path) -> dict[str, Any] | None:
    """`step` and `digest` of a complete or pruned checkpoint; None where there is neither."""
    for name in (COMPLETE, PRUNED):
        if (folder / name).exists():
            found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return found
    return None


def file_digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def weights_digest(files: Mapping[str, str]) -> str:
    """SHA-256 over config.json, the weights and the settings of its image processor: the name of
    what a model computes.

    Args:
        files: SHA-256 of files by name; others are passed over.
    """
    named = hashlib.sha256()
    for name in sorted(files):
        weighs = "/" not in name and name.endswith((".safetensors", "processor_config.json"))
        if weighs or name == "config.json":
            named.update(f"{name} {files[name]}\n".encode())
    return named.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _marker(manifest: Path) -> str:
    raw = manifest.read_bytes()
    content = json.loads(raw)
    named = {"step": content["step"], "digest": content["digest"]}
    return json.dumps({**named, "manifest": hashlib.sha256(raw).hexdigest()})


def _fault(path: Path, entry: Mapping[str, Any], quick: bool) -> str:
    name = f"{path.parent.name}/{path.name}" if path.parent.name == "trainer" else path.name
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        if not quick and file_digest(path) != entry["sha256"]:
            return f"{name} has changed since it was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return ""
