"""What a report was made from, inside the report: a folder that a stranger can check.

    REPORT/evidence.zip     the study's own files, byte for byte, in their places
    REPORT/MANIFEST.json    SHA-256 of every file of the report and of the evidence; software

Weights, optimiser states and logs are not in it: what is, is enough to draw every number and every
figure of the report again, and to grade every stored sample again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.report.study import Study
from reopold.config import ConfigError
from reopold.provenance import git_commit
from reopold.run_dir import RunDir, read_object, write_atomic

EVIDENCE, MANIFEST, SCHEMA = "evidence.zip", "MANIFEST.json", 1
#: What decides the bytes of a report beside the evidence.
SOFTWARE = ("reopold", "jinja2", "matplotlib", "numpy", "pandas", "pyarrow")
#: Of a run directory.
_OF_RUNS = (
    *("config.json", "changes.json", "manifest.json", "metrics.jsonl", "diagnostics.jsonl"),
    *("events.jsonl", "eval/*/*/results.json", "eval/*/*/samples.parquet"),
)
#: Of a study's folder; `*` stands for one name.
_OF_STUDIES = (
    "study.json",
    *(f"runs/*/{pattern}" for pattern in _OF_RUNS),
    *("references/*/*/results.json", "references/*/*/samples.parquet"),
    *("scaling/*/*/results.json", "scaling/*/*/samples.parquet"),
    *("microscope/*/about.json", "microscope/*/before.jsonl", "microscope/*/after.jsonl"),
    "micro/*/test.jsonl",
)
#: The date of everything in the archive: the same study gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def evidence_files(study: Study, pictures: Iterable[Path]) -> dict[str, Path]:
    """The study's files by their place in it.

    Args:
        pictures: those that the report shows.
    """
    folder = study.folder
    found = {file for pattern in _OF_STUDIES for file in folder.glob(pattern) if file.is_file()}
    for run in study.everyone:
        found |= set(last_rollouts(run.directory))
    named = {file.relative_to(folder).as_posix(): file for file in sorted(found)}
    inside = [file for file in pictures if file.is_relative_to(folder)]
    named |= {file.relative_to(folder).as_posix(): file for file in inside}
    return dict(sorted(named.items()))


def last_rollouts(run: RunDir) -> list[Path]:
    """The newest rollouts that a run has kept."""
    return sorted((run.path / "rollouts").glob("step-*.jsonl"))[-1:]


def write_evidence(report: Path, files: Mapping[str, bytes], evidence: Mapping[str, Path]) -> None:
    """Write the archive and the manifest of a report whose files are `files`."""
    target = report / EVIDENCE
    temporary = target.with_suffix(".tmp")
    digests = {}
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, file in evidence.items():
            content = file.read_bytes()
            digests[name] = digest(content)
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            packed = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, packed, 9)
    temporary.replace(target)
    manifest = {
        "schema": SCHEMA,
        "files": {name: digest(content) for name, content in sorted(files.items())},
        "evidence": digests,
        "software": software(),
        "git_commit": git_commit(),
    }
    write_atomic(report / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_manifest(report: Path) -> dict[str, Any]:
    """The manifest of a report.

    Raises:
        ConfigError: there is none, or it is none of this version.
    """
    file = report / MANIFEST
    found = read_object(file, f"{report} holds no {MANIFEST}: it is no report")
    if found.get("schema") != SCHEMA:
        raise ConfigError(f"{file} is not of schema {SCHEMA}, which this version reads")
    return found


def unpack(report: Path, folder: Path) -> dict[str, str]:
    """Unpack the evidence into `folder`; its digests by name.

    Raises:
        ConfigError: there is no archive, it is damaged, or a name in it leads elsewhere.
    """
    file, found = report / EVIDENCE, {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                place = folder / entry.filename
                if ".." in Path(entry.filename).parts or not place.is_relative_to(folder):
                    raise ConfigError(f"{file}: {entry.filename} leads out of the study")
                place.parent.mkdir(parents=True, exist_ok=True)
                content = archive.read(entry)
                place.write_bytes(content)
                found[entry.filename] = digest(content)
    except FileNotFoundError as error:
        raise ConfigError(f"{report} holds no {EVIDENCE}") from error
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from error
    return found


def software() -> dict[str, str]:
    return {name: version(name) for name in SOFTWARE}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
