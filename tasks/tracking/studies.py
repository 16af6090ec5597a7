"""A whole study in MLflow: its runs, its report, its pages and the best of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.run_dir import RunDir
from reopold.study_config import StudyConfig
from tasks import home
from tasks import tracking_records as records
from tasks.tracking import pages, ranking
from tasks.tracking.client import log_params, reaching, set_status, study_parent
from tasks.tracking.shipment import ship_run
from tasks.tracking_records import BestCheckpoint, StudyReport

if TYPE_CHECKING:
    from mlflow import MlflowClient


def ship_study(study_dir: Path) -> StudyReport:
    """Send every run under `study_dir`, then its report into the parent run, which ends with them.

    Raises:
        TrackingUnavailable, ConfigError: as :func:`ship_run`.
    """
    study, files = study_dir.name, sorted(study_dir.glob("runs/*/config.json"))
    runs = [ship_run(file.parent) for file in files]
    ended = max((RunDir(file.parent).manifest().get("updated_at", 0) for file in files), default=0)
    with reaching() as client:
        experiment_id, run_id = study_parent(client, study, None)
        parent = client.get_run(run_id)
        recipe, report = study_dir / "study.json", study_dir / "report"
        if recipe.exists():
            log_params(client, parent, json.loads(recipe.read_text(encoding="utf-8")))
        sent = _send_scores(client, run_id, report / "scores.csv")
        status = records.study_status([run.status for run in runs])
        set_status(client, parent, status, ended)
        if recipe.exists():
            client.log_artifact(run_id, str(recipe))
        if report.is_dir():
            client.log_artifacts(run_id, str(report), "report")
        config = pages.recipe(study_dir)
        champion = _crown(client, config, experiment_id) if config else None
        if config is not None:
            pages.dress(client, parent, config, study_dir, crowned=champion is not None)
        return StudyReport(
            experiment_id=experiment_id,
            run_id=run_id,
            status=status,
            scores_sent=sent,
            champion=champion.checkpoint if champion else "",
            runs=runs,
            url=records.page(client.tracking_uri, experiment_id, run_id),
        )


def _send_scores(client: MlflowClient, run_id: str, file: Path) -> int:
    """Mean scores of scores.csv as metrics, at the file's time: sent twice they are one point."""
    from mlflow.entities import Metric

    scores = records.mean_scores(file)
    time = int(file.stat().st_mtime * 1000) if scores else 0
    points = [Metric(name, value, time, step) for name, value, step in scores]
    for first in range(0, len(points), records.METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + records.METRICS_A_BATCH])
    return len(points)


def _crown(client: MlflowClient, study: StudyConfig, experiment_id: str) -> BestCheckpoint | None:
    """Move the registry's alias to the best checkpoint by the study's rule; None: there is none.

    A version of the registered model (it has the study's name) points at the checkpoint's logged
    model, and so at its folder: no weights are copied.
    """
    rule, (benchmark, metric) = study.champion, pages.measure(study)
    best = ranking.best(
        client,
        experiment_id,
        benchmark,
        metric,
        rule.arms or [arm.name for arm in study.compared],
        study.train.steps if rule.checkpoints == "last" else None,
    )
    if best is None:
        return None
    with home.locked(home.mlflow_lock()):
        _registered(client, study.name, records.registry_note(study, benchmark, metric))
        found = client.search_model_versions(f"name = '{study.name}'")
        version = next((v for v in found if v.tags.get("digest") == best.digest), None)
        if version is None:
            version = client.create_model_version(
                study.name,
                f"models:/{best.model_id}",
                model_id=best.model_id,
                tags={"digest": best.digest, "checkpoint": best.checkpoint, "run": best.run},
                description=records.champion_note(best, rule, metric),
            )
        client.set_registered_model_alias(study.name, rule.alias, version.version)
    return best


def _registered(client: MlflowClient, name: str, note: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        there = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description=note)
    else:
        if there.description != note:
            client.update_registered_model(name, note)
