"""Published numbers as external models beside a study's checkpoints.

MLflow keeps a model's metrics with a run, and its page ranks runs and not models: so each has a run
that holds nothing else. Neither is a result of ours: their tags say whose it is.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from evals.published import STATUS, PublishedScore, published_on
from reopold.study_config import StudyConfig
from tasks import home
from tasks import tracking_records as records
from tasks.tracking.client import PARENT, find_runs, set_status, set_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

PUBLISHED = "reopold.published"
#: In place of a digest: whether their items are the ones we have is not known.
_ITEMS = "as published"


def shown(study: StudyConfig, study_dir: Path) -> list[PublishedScore]:
    """Those that the study's report shows: on what it measures, and on what its recipe names."""
    found = {file.parent.name for file in study_dir.glob("runs/*/eval/step-*/*/results.json")}
    return published_on({*study.evaluation.benchmarks, *found, *study.published})


def send_published(
    client: MlflowClient, parent: Run, study: str, scores: Sequence[PublishedScore]
) -> int:
    """One external model for each method, model, teacher and origin; returns how many there are.

    One whose numbers have changed, or that is shown no more, is deleted: MLflow keeps every value
    that a metric of a model has ever had.
    """
    rows = [list(group) for _, group in groupby(sorted(scores, key=_whose), _whose)]
    wanted = {_identity(row): row for row in rows}
    with home.locked(home.mlflow_lock()):
        for run in find_runs(client, parent.info.experiment_id, "role", "published"):
            if run.data.tags.get(PUBLISHED) not in wanted:
                _delete(client, run)
        for identity, row in wanted.items():
            _send(client, parent, identity, row, _tags(study, row))
    return len(rows)


def _whose(score: PublishedScore) -> tuple[str, str, str, str]:
    return score.method, score.model, score.teacher, score.origin


def _identity(row: Sequence[PublishedScore]) -> str:
    """Of whose numbers they are and of the numbers."""
    numbers = (f"{each.benchmark} {each.metric} {each.k} {each.value}" for each in row)
    return hashlib.sha256("\n".join((*_whose(row[0]), *numbers)).encode()).hexdigest()


def _delete(client: MlflowClient, run: Run) -> None:
    for model in _models(client, run):
        client.delete_logged_model(model.model_id)
    client.delete_run(run.info.run_id)


def _send(
    client: MlflowClient,
    parent: Run,
    identity: str,
    row: Sequence[PublishedScore],
    tags: Mapping[str, str],
) -> None:
    from mlflow.entities import Metric

    run = _run(client, parent, identity, row, tags)
    model = _model(client, run, row, tags)
    there = {metric.key for metric in model.metrics or []}
    now, link = int(time.time() * 1000), model.model_id
    points = [
        Metric(name, value, now, 0, link, benchmark, _ITEMS)
        for (benchmark, name), value in _metrics(row).items()
        if name not in there
    ]
    if points:
        client.log_batch(run.info.run_id, metrics=points)
    if str(model.status) != "READY":
        client.finalize_logged_model(model.model_id, "READY")
    set_status(client, run, "FINISHED", run.info.start_time / 1000)


def _metrics(row: Sequence[PublishedScore]) -> dict[tuple[str, str], float]:
    """By benchmark and name, as ours are named and between 0 and 1; only where k is stated."""
    return {
        (score.benchmark, records.score_name(score.benchmark, score.metric, score.k)): (
            round(score.value / 100, 6)
        )
        for score in row
        if score.k
    }


def _tags(study: str, row: Sequence[PublishedScore]) -> dict[str, str]:
    first = row[0]
    unsaid = (f"{each.title} {each.value:g} %" for each in row if not each.k)
    return {
        "role": "published",
        "arm": f"published: {first.method}",
        "method": first.method,
        "model": first.model,
        "teacher": first.teacher or "none",
        "origin": first.origin,
        "source": first.source,
        "caveat": first.caveat,
        "status": STATUS,
        "study": study,
        "k_not_stated": ", ".join(unsaid),
    }


def _run(
    client: MlflowClient,
    parent: Run,
    identity: str,
    row: Sequence[PublishedScore],
    tags: Mapping[str, str],
) -> Run:
    experiment_id = parent.info.experiment_id
    found = find_runs(client, experiment_id, PUBLISHED, identity)
    for twin in found[1:]:  # of a request whose answer came too late: it was made again
        _delete(client, twin)
    own = {PUBLISHED: identity, PARENT: parent.info.run_id, "mlflow.source.type": "LOCAL"}
    run = (
        found[0]
        if found
        else client.create_run(experiment_id, parent.info.start_time, own, _name(row[0]))
    )
    note = {"mlflow.source.name": "published", "mlflow.note.content": _note(row)}
    set_tags(client, run, {**tags, **note})
    return run


def _note(row: Sequence[PublishedScore]) -> str:
    first = row[0]
    said = f"**{first.method}**, {first.origin}: {STATUS}. {first.source}."
    scores = (f"- {each.title}: {each.value:g} %, {_samples(each)}" for each in row)
    return "\n\n".join((said, first.caveat, "\n".join(scores)))


def _samples(score: PublishedScore) -> str:
    return score.metric.replace("@k", f"@{score.k}" if score.k else ", samples not stated")


def _model(
    client: MlflowClient, run: Run, row: Sequence[PublishedScore], tags: Mapping[str, str]
) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    found = _models(client, run)
    for twin in found[1:]:
        client.delete_logged_model(twin.model_id)
    kind = {**tags, MLFLOW_MODEL_IS_EXTERNAL: "true", "mlflow.note.content": _note(row)}
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment_id,
            name=re.sub(r"[^A-Za-z0-9_-]+", "-", _name(row[0])).strip("-"),
            source_run_id=run_id,
            tags=kind,
            model_type="published",
        )
    )
    if changed := {key: value for key, value in kind.items() if model.tags.get(key, "") != value}:
        client.set_logged_model_tags(model.model_id, changed)
    linked = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {each.model_id for each in linked}:  # twice is an error
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model


def _models(client: MlflowClient, run: Run) -> list[LoggedModel]:
    from_it = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], from_it))


def _name(score: PublishedScore) -> str:
    return f"{score.method} ({score.origin})"
