"""A whole study in MLflow: all its runs and its report, and the best of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.config import parse
from reopold.run_dir import RunDir
from reopold.study_config import StudyConfig
from tasks import home
from tasks import tracking_records as records
from tasks.tracking.client import log_params, reaching, set_status, study_parent
from tasks.tracking.shipment import ship_run
from tasks.tracking_records import BestCheckpoint, StudyReport

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


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
        champion = _crown(client, study_dir, experiment_id)
        return StudyReport(
            experiment_id=experiment_id,
            run_id=run_id,
            status=status,
            scores_sent=sent,
            champion=champion.checkpoint if champion else "",
            runs=runs,
            url=records.page(client.tracking_uri, experiment_id, run_id),
        )


def best_checkpoint(
    study: str,
    benchmark: str,
    metric: str = "avg@4",
    *,
    arms: Sequence[str] = (),
    step: int | None = None,
) -> BestCheckpoint | None:
    """The study's best evaluated checkpoint; None if there is none.

    Args:
        arms: among these; none: all but the runs that every arm starts from or learns from.
        step: among checkpoints after so many completed steps.

    Raises:
        TrackingUnavailable: MLflow is away or refuses.
    """
    with reaching() as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return None
        return _best(client, experiment.experiment_id, benchmark, metric, arms, step)


def _best(
    client: MlflowClient,
    experiment_id: str,
    benchmark: str,
    metric: str,
    arms: Sequence[str],
    step: int | None,
) -> BestCheckpoint | None:
    name = records.score_name(benchmark, metric)
    by_score = {"field_name": f"metrics.{name}", "ascending": False, "dataset_name": benchmark}
    token = None
    while True:
        page = client.search_logged_models(
            [experiment_id], order_by=[by_score], page_token=token, max_results=100
        )
        for model in page:
            scores = {point.key: point.value for point in model.metrics or []}
            if name not in scores:
                return None  # models without the score come last
            if not _is_among(model, arms, step):
                continue
            score = {
                "model_id": model.model_id,
                "value": scores[name],
                "low": scores.get(f"{name}_low"),
                "high": scores.get(f"{name}_high"),
            }
            return BestCheckpoint.model_validate({**model.tags, **model.params, **score})
        token = page.token
        if not token:
            return None


def _is_among(model: LoggedModel, arms: Sequence[str], step: int | None) -> bool:
    if step is not None and model.params.get("step") != str(step):
        return False
    if arms:
        return model.tags.get("arm") in arms
    return model.tags.get("role") == "arm"


def _send_scores(client: MlflowClient, run_id: str, file: Path) -> int:
    """Mean scores of scores.csv as metrics, at the file's time: sent twice they are one point."""
    from mlflow.entities import Metric

    scores = records.mean_scores(file)
    time = int(file.stat().st_mtime * 1000) if scores else 0
    points = [Metric(name, value, time, step) for name, value, step in scores]
    for first in range(0, len(points), records.METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + records.METRICS_A_BATCH])
    return len(points)


def _crown(client: MlflowClient, study_dir: Path, experiment_id: str) -> BestCheckpoint | None:
    """Move the registry's alias to the best checkpoint by the study's rule; None: there is none.

    A version of the registered model (it has the study's name) points at the checkpoint's logged
    model, and so at its folder: no weights are copied.
    """
    recipe = study_dir / "study.json"
    if not recipe.exists():
        return None
    study = parse(json.loads(recipe.read_text(encoding="utf-8")), StudyConfig, str(recipe))
    rule = study.champion
    best = _best(
        client,
        experiment_id,
        rule.benchmark or study.evaluation.benchmark,
        rule.metric.replace("@k", f"@{study.evaluation.samples}"),
        rule.arms or [arm.name for arm in study.compared],
        study.train.steps if rule.checkpoints == "last" else None,
    )
    if best is None:
        return None
    with home.locked(home.mlflow_lock()):
        _registered(client, study.name)
        found = client.search_model_versions(f"name = '{study.name}'")
        version = next((v for v in found if v.tags.get("digest") == best.digest), None)
        if version is None:
            version = client.create_model_version(
                study.name,
                f"models:/{best.model_id}",
                model_id=best.model_id,
                tags={"digest": best.digest, "checkpoint": best.checkpoint, "run": best.run},
                description=records.champion_note(best, rule),
            )
        client.set_registered_model_alias(study.name, rule.alias, version.version)
    return best


def _registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description=f"Checkpoints of the study {name}.")
