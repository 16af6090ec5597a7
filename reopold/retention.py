"""Which checkpoints of a run stay on disk. Importable without torch.

A checkpoint that only a stop or `train.save_every` asked for goes once a later one is complete: an
interrupted run ends with the files of any other. Of the others `train.keep_last` and
`train.keep_best` decide; what is removed leaves its name, digest and evaluation behind.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from reopold.config import RunConfig
from reopold.integrity import COMPLETE, PRUNED, marker
from reopold.run_dir import RunDir, step_of


def prune(run: RunDir, config: RunConfig) -> list[Path]:
    """Remove what need not stay; returns the folders. The newest complete one always stays."""
    points = run.resume_points()
    scheduled = {run.checkpoint(k) for k in config.checkpoint_steps()}
    passing = [folder for folder in points[:-1] if folder not in scheduled]
    for folder in passing:
        _drop(run, folder)
    going = [run.checkpoint(k) for k in _surplus(run, config)]
    for folder in going:
        _strip(folder)
    return [*passing, *going]


def _surplus(run: RunDir, config: RunConfig) -> list[int]:
    """Scheduled checkpoints beyond the newest `keep_last` and the best `keep_best`.

    The best go by the first benchmark. One that has yet to be evaluated on all of them stays, and
    so does the last of the run, which others start from.
    """
    steps = run.complete_checkpoints()
    if not config.train.keep_last:
        return []
    names = [each.benchmark for each in config.evaluations]
    scores = {k: [_score(run, name, k) for name in names] for k in steps}
    evaluates = bool(config.evaluation.data) and config.method != "sft"
    best = sorted(steps, key=lambda k: (-(scores[k][0] or -math.inf), k))[: config.train.keep_best]
    kept = {*steps[-config.train.keep_last :], *best, steps[-1], config.train.steps}
    return [k for k in steps if k not in kept and not (evaluates and None in scores[k])]


def _score(run: RunDir, benchmark: str, step: int) -> float | None:
    """The first score of a checkpoint's evaluation; None if it has not been evaluated."""
    file = run.evaluation(step, benchmark) / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        own = results["checkpoint_digest"] == (marker(run.checkpoint(step)) or {}).get("digest")
        return float(results["scores"][0]["value"]) if own else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _drop(run: RunDir, folder: Path) -> None:
    """Unname it first: a killed deletion leaves no half checkpoint behind."""
    gone = folder.with_name(f".{folder.name}.gone")
    os.rename(folder, gone)
    shutil.rmtree(gone)
    if not folder.name.endswith("-mid"):
        run.rollouts_file(step_of(folder)).unlink(missing_ok=True)


def _strip(folder: Path) -> None:
    """Leave only the marker, under another name."""
    os.rename(folder / COMPLETE, folder / PRUNED)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PRUNED:
            path.unlink()
