"""A whole study in MLflow: all its runs and its report, and the best of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.run_dir import RunDir
from tasks import home
from tasks import tracking_records as records
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
        note = records.description(study, home.relative(study_dir / "runs"))
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
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
        return StudyReport(
            experiment_id=experiment_id,
            run_id=run_id,
            status=status,
            scores_sent=sent,
            runs=runs,
            url=records.page(client.tracking_uri, experiment_id, run_id),
        )


def best_checkpoint(
    study: str, benchmark: str, metric: str = "avg@4", method: str | None = None
) -> BestCheckpoint | None:
    """The study's best evaluated checkpoint, by one query; None if there is none.

    Without `method`, the supervised runs (the study's own teacher and student) are left out.

    Raises:
        TrackingUnavailable: MLflow is away or refuses.
    """
    name = records.score_name(benchmark, metric)
    by_score = {"field_name": f"metrics.{name}", "ascending": False, "dataset_name": benchmark}
    with reaching() as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return None
        models = client.search_logged_models(
            [experiment.experiment_id],
            filter_string=f"tags.method = '{method}'" if method else "tags.method != 'sft'",
            order_by=[by_score],
            max_results=1,
        )
    scores = {point.key: point.value for model in models for point in model.metrics or []}
    if name not in scores:
        return None
    best = models[0]
    score = {
        "model_id": best.model_id,
        "value": scores[name],
        "low": scores.get(f"{name}_low"),
        "high": scores.get(f"{name}_high"),
    }
    return BestCheckpoint.model_validate({**best.tags, **best.params, **score})


def _send_scores(client: MlflowClient, run_id: str, file: Path) -> int:
    """Mean scores of scores.csv as metrics, at the file's time: sent twice they are one point."""
    from mlflow.entities import Metric

    scores = records.mean_scores(file)
    time = int(file.stat().st_mtime * 1000) if scores else 0
    points = [Metric(name, value, time, step) for name, value, step in scores]
    for first in range(0, len(points), records.METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + records.METRICS_A_BATCH])
    return len(points)
