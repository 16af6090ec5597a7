"""Ship run directories to MLflow: the only file that imports mlflow (and does so when called).

    experiment   a study
    parent run   the study: its recipe, its report, each method's mean score by checkpoint
    child run    a run directory: metrics by step, tags, parameters, config.json, manifest.json
    logged model a checkpoint that has been evaluated; its metrics name the benchmark as data set

The run directory is the truth and MLflow a copy that may lag. What has arrived is asked of MLflow
itself, so no crash between sending and writing `tracking.json` sends a step twice. No fluent API:
its active run is per thread (mlflow #15131). Calls as in mlflow 3.17, `mlflow/tracking/client.py`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reopold.run_dir import Record, RunDir
from tasks import home
from tasks import tracking_records as records
from tasks.tracking_records import (
    BestCheckpoint,
    ShipReport,
    StudyReport,
    TrackingUnavailable,
)

__all__ = [
    "BestCheckpoint",
    "ShipReport",
    "StudyReport",
    "TrackingUnavailable",
    "best_checkpoint",
    "ship_run",
    "ship_study",
]

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


def ship_run(run_dir: Path, *, study: str) -> ShipReport:
    """Send what MLflow lacks of one run directory. From any thread or process, at any time.

    Raises:
        TrackingUnavailable: MLflow is away or refuses (known after seconds); call again later.
        ConfigError: `run_dir` holds no run.
    """
    home.configure_mlflow()
    shipment = _Shipment(RunDir(run_dir), study)
    with home.locked(run_dir / ".tracking.lock"), _reaching() as client:
        return shipment.send(client)


def ship_study(study_dir: Path) -> StudyReport:
    """Send every run under `study_dir`, then its report into the parent run, which ends with them.

    Raises:
        TrackingUnavailable, ConfigError: as :func:`ship_run`.
    """
    study, files = study_dir.name, sorted(study_dir.glob("runs/*/config.json"))
    runs = [ship_run(file.parent, study=study) for file in files]
    ended = max((RunDir(file.parent).manifest().get("updated_at", 0) for file in files), default=0)
    home.configure_mlflow()
    with _reaching() as client:
        experiment_id, run_id = _study_parent(client, study, None)
        parent = client.get_run(run_id)
        note = records.description(study, home.relative(study_dir / "runs"))
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
        recipe, report = study_dir / "study.json", study_dir / "report"
        if recipe.exists():
            _log_params(client, parent, json.loads(recipe.read_text(encoding="utf-8")))
            client.log_artifact(run_id, str(recipe))
        if report.is_dir():
            client.log_artifacts(run_id, str(report), "report")
        sent = _send_scores(client, run_id, report / "scores.csv")
        status = records.study_status([run.status for run in runs])
        _set_status(client, parent, status, ended)
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
    home.configure_mlflow()
    name = records.score_name(benchmark, metric)
    by_score = {"field_name": f"metrics.{name}", "ascending": False, "dataset_name": benchmark}
    with _reaching() as client:
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


class _Shipment:
    """One run directory on its way to MLflow."""

    client: MlflowClient
    run_id: str
    cursor: records.Cursor

    def __init__(self, run_dir: RunDir, study: str) -> None:
        self.run_dir, self.study, self.config = run_dir, study, run_dir.config()

    def send(self, client: MlflowClient) -> ShipReport:
        # The manifest first: what it calls finished is complete in the files read after it.
        manifest, lines = self.run_dir.manifest(), self.run_dir.metrics()
        evaluations = records.evaluations(self.run_dir)
        self.client = client
        self.cursor = records.Cursor.load(self.run_dir.path, client.tracking_uri)
        run = self._find_or_create(manifest)
        self.run_id = run.info.run_id
        self._describe(run, manifest, lines)
        sent = self._send_metrics(run, lines)
        shipped = self.cursor.evaluations
        fresh = [each for each in evaluations if shipped.get(each.key) != each.content]
        for evaluation in fresh:
            self._send_evaluation(evaluation, lines)
        status = records.STATUS[manifest["status"]]
        _set_status(client, run, status, manifest.get("updated_at", 0))
        return ShipReport(
            experiment_id=self.cursor.experiment_id,
            run_id=self.run_id,
            status=status,
            next_step=self.cursor.next_step,
            metrics_sent=sent,
            evaluations_sent=len(fresh),
            url=records.page(client.tracking_uri, self.cursor.experiment_id, self.run_id),
        )

    def _find_or_create(self, manifest: Record) -> Run:
        """The run of the cursor; else (or if MLflow lost it) by digest and start; or a new one."""
        if self.cursor.run_id:
            run = _get_run(self.client, self.cursor.run_id)
            if run is not None:
                return run
            self.cursor = records.Cursor(self.cursor.file, self.cursor.tracking_uri)
        digest = self.run_dir.digest()
        started = manifest.get("started_at")
        start_time = int(started * 1000) if started else None
        experiment_id, parent_id = _study_parent(self.client, self.study, start_time)
        # Deleted and started over, the same config is another run: its old points must not stay.
        identity = f"{digest}@{started}"
        run = _find_run(self.client, experiment_id, "reopold.identity", identity)
        if run is None:
            run = self.client.create_run(
                experiment_id,
                start_time=start_time,
                run_name=self.config.name,
                tags={
                    "reopold.config_digest": digest,
                    "reopold.identity": identity,
                    "mlflow.parentRunId": parent_id,
                },
            )
        self.cursor.save(experiment_id=experiment_id, run_id=run.info.run_id)
        return run

    def _describe(self, run: Run, manifest: Record, lines: Sequence[Record]) -> None:
        """Tags as they are now; parameters and config.json once; the manifest at each status."""
        tags = records.tags(self.config, manifest, self.study, home.relative(self.run_dir.path))
        tags["phase"] = str(lines[-1]["phase"]) if lines else self.config.phase(0)
        self._set_tags(run, tags)
        if not self.cursor.described:
            _log_params(
                self.client, run, json.loads(self.run_dir.config_file.read_text(encoding="utf-8"))
            )
            self.client.log_artifact(self.run_id, str(self.run_dir.config_file))
        if self.cursor.described != manifest["status"]:
            if self.run_dir.manifest_file.exists():
                self.client.log_artifact(self.run_id, str(self.run_dir.manifest_file))
            self.cursor.save(described=manifest["status"])

    def _set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        there, cut = run.data.tags, records.TAG_CHARS
        changed = [RunTag(k, v[:cut]) for k, v in tags.items() if v[:cut] != there.get(k, "")]
        if changed:
            self.client.log_batch(self.run_id, tags=changed)

    def _send_metrics(self, run: Run, lines: Sequence[Record]) -> int:
        """Send the steps that MLflow lacks, whole steps in each batch; returns the points sent.

        `samples` grows with every step and travels with it in one transaction: its latest value
        says what has arrived. A step that runs again after a resume has the same `samples`.
        """
        from mlflow.entities import Metric

        arrived = run.data.metrics.get("samples", -math.inf)
        fresh = [line for line in lines if line["samples"] > arrived]
        if bad := records.non_finite(fresh):
            known = run.data.tags.get("reopold.non_finite", "").split(", ")
            merged = ", ".join(dict.fromkeys([*filter(None, known), *bad]))
            self._set_tags(run, {"reopold.non_finite": merged})
        old = (line["step"] + 1 for line in lines if line["samples"] <= arrived)
        self.cursor.next_step = max(self.cursor.next_step, max(old, default=0))
        sent = 0
        for batch in records.step_batches(fresh):
            points = [
                Metric(key, value, int(line["time"] * 1000), line["step"])
                for line in batch
                for key, value in records.finite(line).items()
            ]
            self.client.log_batch(self.run_id, metrics=points)
            self.cursor.save(next_step=batch[-1]["step"] + 1)
            sent += len(points)
        return sent

    def _send_evaluation(self, evaluation: records.Evaluation, lines: Sequence[Record]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        benchmark, digest = evaluation.benchmark, evaluation.dataset_digest
        model = self._model(evaluation, lines)
        source = json.dumps({"uri": str(evaluation.results["dataset"]["path"])})
        dataset = Dataset(benchmark, digest, "local", source)
        with home.locked(home.mlflow_lock()):  # one row, shared by the study's runs
            context = InputTag("mlflow.data.context", "eval")
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])
        when = (evaluation.time, evaluation.step, model.model_id, benchmark, digest)
        points = [Metric(key, value, *when) for key, value in evaluation.scores().items()]
        self.client.log_batch(self.run_id, metrics=points)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.cursor.save(
            evaluations={**self.cursor.evaluations, evaluation.key: evaluation.content},
            models={**self.cursor.models, str(evaluation.step): model.model_id},
        )

    def _model(self, evaluation: records.Evaluation, lines: Sequence[Record]) -> LoggedModel:
        """The checkpoint's logged model, found by digest or made; it holds no weights."""
        from mlflow.entities import LoggedModelOutput

        step, config, digest = evaluation.step, self.config, evaluation.model_digest
        experiment_id = self.cursor.experiment_id
        found = self.client.search_logged_models(
            [experiment_id],
            f"source_run_id = '{self.run_id}' AND tags.digest = '{digest}'",
            max_results=1,
        )
        if found:
            return found[0]
        where = home.relative(self.run_dir.checkpoint(step))
        samples = next((line["samples"] for line in lines if line["step"] == step - 1), 0)
        model = self.client.create_logged_model(
            experiment_id,
            name=f"{re.sub(r'[^A-Za-z0-9_-]', '-', config.name)}-step-{step:06d}",
            source_run_id=self.run_id,
            model_type="checkpoint",
            params={"step": str(step), "samples": str(samples)},
            tags=records.model_tags(config, self.study, digest, where),
        )
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        return model


@contextmanager
def _reaching() -> Iterator[MlflowClient]:
    """A client; what MLflow, its database or the network throws is TrackingUnavailable."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    shown = records.without_password(uri)
    # Any answer below 500 is a server: one that is not MLflow's own has no /health (404).
    health = f"{shown.rstrip('/')}/health"
    if uri.startswith("http") and (home.http_status(health) or 500) >= 500:
        raise TrackingUnavailable(
            f"no MLflow server answers at {shown}; nothing is lost, try later"
        )
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for chatty in ("alembic", "mlflow.store.db.utils"):  # a new database logs each of its tables
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with home.locked(home.mlflow_lock()):  # the first client makes the tables
            client = MlflowClient(tracking_uri=uri)
        yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingUnavailable(f"MLflow at {shown} did not take it: {error}") from error


def _study_parent(client: MlflowClient, study: str, start_time: int | None) -> tuple[str, str]:
    """Ids of the study's experiment and parent run, made where missing (`start_time` in ms)."""
    with home.locked(home.mlflow_lock()):
        experiment = client.get_experiment_by_name(study) or _new_experiment(client, study)
        if experiment.lifecycle_stage != "active":
            raise TrackingUnavailable(
                f"experiment '{study}' is deleted in MLflow; bring it back with "
                f"`mlflow experiments restore -x {experiment.experiment_id}`"
            )
        experiment_id = str(experiment.experiment_id)
        run = _find_run(client, experiment_id, "reopold.study_parent", study)
        if run is None:
            tags = {
                "reopold.study_parent": study,
                "study": study,
                "mlflow.source.name": "reopold",
                "mlflow.source.type": "LOCAL",
            }
            run = client.create_run(experiment_id, start_time, tags, study)
        return experiment_id, str(run.info.run_id)


def _new_experiment(client: MlflowClient, study: str) -> Any:
    from mlflow.exceptions import MlflowException

    # A database has no place of its own for files, and MLflow's default is the current directory.
    local = client.tracking_uri.startswith("sqlite")
    place = (home.artifact_root() / study).as_uri() if local else None
    note = records.description(study, f"studies/{study}/runs")
    try:
        made = client.create_experiment(study, place, {"mlflow.note.content": note})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
            raise
        return client.get_experiment_by_name(study)
    return client.get_experiment(made)


def _find_run(client: MlflowClient, experiment_id: str, tag: str, value: str) -> Run | None:
    oldest = ["attributes.start_time ASC"]
    wanted = f"tags.`{tag}` = '{value}'"
    found = client.search_runs([experiment_id], wanted, order_by=oldest, max_results=1)
    return found[0] if found else None


def _get_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, or None if it is not there (another database) or was deleted by hand."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _log_params(client: MlflowClient, run: Run, settings: Mapping[str, Any]) -> None:
    """Parameters that the run lacks: they are write-once, and a study's recipe may have changed."""
    from mlflow.entities import Param

    flat = records.flatten(settings).items()
    params = [Param(key, value) for key, value in flat if key not in run.data.params]
    for first in range(0, len(params), records.PARAMS_A_BATCH):
        batch = params[first : first + records.PARAMS_A_BATCH]
        client.log_batch(run.info.run_id, params=batch)


def _send_scores(client: MlflowClient, run_id: str, file: Path) -> int:
    """Mean scores of scores.csv as metrics, at the file's time: sent twice they are one point."""
    from mlflow.entities import Metric

    scores = records.mean_scores(file)
    time = int(file.stat().st_mtime * 1000) if scores else 0
    points = [Metric(name, value, time, step) for name, value, step in scores]
    for first in range(0, len(points), records.METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + records.METRICS_A_BATCH])
    return len(points)


def _set_status(client: MlflowClient, run: Run, status: str, ended: float) -> None:
    """Give the run its status, and where that is final the end time (Unix seconds)."""
    final = status not in ("RUNNING", "SCHEDULED")
    end_time = int(ended * 1000) if final else None
    if final and (run.info.status, run.info.end_time) != (status, end_time):
        client.set_terminated(run.info.run_id, status, end_time)
    elif not final and run.info.status != status:
        client.update_run(run.info.run_id, status)
