"""Where the numbers come from: taken from the run directories, nothing from this machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from evals.report.study import Run, Study
from evals.report.tables import Cell, Table
from evals.report.words import duration

#: An absolute path: a folder tells where somebody works. `1/2`, `org/model` and URLs are none.
_PATH = re.compile(r"(?<![\w.:/\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\",;:)]*[/\\])?([^\s/\\'\",;:)]+)")
_DIGEST = re.compile(r"[0-9a-f]{40,}")
_PRIVATE = ("host", "node", "user", "home", "path", "cwd")


@dataclass(frozen=True)
class RunFacts:
    """One run's identity. Digests are SHA-256, whole; tables show their first 12 characters."""

    run: str
    method: str
    seed: int
    status: str
    step: int
    steps: int
    seconds: float | None
    config_digest: str
    """Empty for a model that was given: nobody knows its recipe."""
    git_commit: str
    checkpoints: dict[str, str]
    """Digest of each evaluated checkpoint, by step."""
    parents: dict[str, str]
    versions: dict[str, str]
    hardware: dict[str, str]
    message: str


def run_facts(run: Run) -> RunFacts:
    manifest = run.manifest
    digests = {item.step: item.results.checkpoint_digest for item in run.evaluations}
    seconds = manifest.get("seconds")
    return RunFacts(
        run=run.name,
        method=run.arm,
        seed=run.seed,
        status=str(manifest.get("status", "new")),
        step=int(manifest.get("step", 0)),
        steps=run.steps,
        seconds=float(seconds) if seconds is not None and math.isfinite(seconds) else None,
        config_digest=""
        if run.given
        else str(manifest.get("config_digest") or run.directory.digest()),
        git_commit=str(manifest.get("git_commit") or "unknown"),
        checkpoints={str(step): public(digest) for step, digest in sorted(digests.items())},
        parents=_public_items(manifest.get("parents")),
        versions=_public_items(manifest.get("versions")),
        hardware=_public_items(manifest.get("hardware")),
        message=public(str(manifest.get("message") or "")),
    )


def public(text: str) -> str:
    """`text` with absolute paths cut to their last part."""
    return _PATH.sub(r"\1", text)


def _public_items(items: object) -> dict[str, str]:
    if not isinstance(items, dict):
        return {}
    return {
        str(key): public(str(value))
        for key, value in sorted(items.items())
        if not any(word in str(key).lower() for word in _PRIVATE)
    }


def provenance_table(facts: list[RunFacts]) -> Table:
    columns = ["run", "state", "steps", "wall-clock", "config", "final checkpoint", "started from"]
    rows = []
    for fact in facts:
        newest = list(fact.checkpoints.items())[-1:]
        step = f"step {newest[0][0]}" if newest and fact.config_digest else ""
        checkpoint = Cell(short(newest[0][1]), step) if newest else Cell("–")
        parents = ", ".join(f"{name} {short(digest)}" for name, digest in fact.parents.items())
        rows.append(
            [
                Cell(fact.run),
                Cell(fact.status, fact.message if fact.status == "failed" else ""),
                Cell(f"{fact.step} of {fact.steps}" if fact.config_digest else "–"),
                Cell("–" if fact.seconds is None else duration(fact.seconds)),
                Cell(short(fact.config_digest) or "–"),
                checkpoint,
                Cell(parents or "–"),
            ]
        )
    caption = (
        "Wall-clock is the trainer's, summed over restarts, without evaluation. Digests are "
        "the first 12 characters of SHA-256; report.json holds them whole."
    )
    return Table("provenance", "Runs", caption, columns, rows)


def shared_facts(study: Study, facts: list[RunFacts]) -> list[tuple[str, str]]:
    """Commit, versions, hardware and data; where runs differ, each value with its runs."""
    values: dict[str, dict[str, list[str]]] = {}
    for fact in (fact for fact in facts if fact.config_digest):
        pairs = {
            "commit": fact.git_commit,
            **{f"version of {name}": value for name, value in fact.versions.items()},
            **{f"hardware: {name}": value for name, value in fact.hardware.items()},
        }
        for name, value in pairs.items():
            values.setdefault(name, {}).setdefault(value, []).append(fact.run)
    for run in study.everyone:
        for item in run.evaluations:
            name = f"test data of {item.benchmark}"
            runs = values.setdefault(name, {}).setdefault(short(item.results.dataset.digest), [])
            if run.name not in runs:
                runs.append(run.name)
    return [(name, _agreed(found)) for name, found in values.items()]


def _agreed(found: dict[str, list[str]]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return "differs: " + "; ".join(f"{value} ({', '.join(runs)})" for value, runs in found.items())


def short(digest: str) -> str:
    """The first 12 characters of a digest; a hub id stays whole."""
    return digest[:12] if _DIGEST.fullmatch(digest) else digest
