"""One run directory on its way to MLflow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.run_dir import Record, RunDir
from tasks import home
from tasks import tracking_records as records
from tasks.tracking import pages, state
from tasks.tracking.client import (
    ATTEMPT,
    IDENTITY,
    PARENT,
    find_runs,
    get_run,
    log_params,
    reaching,
    set_status,
    set_tags,
    study_parent,
)
from tasks.tracking.traces import Origin, send_episodes
from tasks.tracking_records import ShipReport

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


def ship_run(run_dir: Path, *, under_way: bool = False) -> ShipReport:
    """Send what MLflow lacks of one run directory. From any thread or process, at any time.

    Args:
        under_way: a flow is at work on the run: that its trainer has ended a stage, or just died,
            does not end the run in MLflow.

    Raises:
        TrackingUnavailable: MLflow is away or refuses (known after seconds); call again later.
        ConfigError: `run_dir` holds no run.
    """
    run = RunDir(run_dir)
    shipment = _Shipment(run, under_way)
    with reaching() as client, home.locked(run_dir / ".tracking.lock"):
        return shipment.send(client)


class _Shipment:
    client: MlflowClient
    run_id: str
    cursor: state.Cursor
    found: state.Snapshot
    linked: set[str]
    """Logged models that the run has among its outputs."""

    def __init__(self, run_dir: RunDir, under_way: bool) -> None:
        self.run_dir, self.under_way, self.config = run_dir, under_way, run_dir.config()
        self.study = records.study_of(run_dir.path)

    def send(self, client: MlflowClient) -> ShipReport:
        """Numbers first, files last: a full artifact store must not keep the numbers back."""
        self.client, self.found = client, state.snapshot(self.run_dir)
        self.cursor = state.Cursor.load(self.run_dir.path, client.tracking_uri)
        run = self._find_or_create()
        self.run_id = run.info.run_id
        self.linked = (
            {each.model_id for each in run.outputs.model_outputs} if run.outputs else set()
        )
        shipped = self.cursor.evaluations
        fresh = [each for each in self.found.evaluations if shipped.get(each.key) != each.content]
        self._describe(run, fresh)
        steps, points = self._send_metrics(run)
        for evaluation in fresh:
            self._send_evaluation(evaluation)
        status = self.found.status(self.under_way)
        set_status(client, run, status, self.found.ended)
        if self.cursor.status != status:
            self.cursor.save(status=status)
        self._send_files()
        dialogues = self._send_dialogues()
        return ShipReport(
            experiment_id=self.cursor.experiment_id,
            run_id=self.run_id,
            name=self.run_dir.path.name,
            status=status,
            next_step=self.cursor.next_step,
            steps_sent=steps,
            metrics_sent=points,
            evaluations_sent=len(fresh),
            dialogues_sent=dialogues,
            url=records.page(client.tracking_uri, self.cursor.experiment_id, self.run_id),
        )

    def _find_or_create(self) -> Run:
        """The run of the cursor; else (or if MLflow lost it) by its identity; or a new one.

        Deleted and started over, the same config is another run, and so is what a rollback runs
        again with a changed setting: the old points must not stay among the new.
        """
        found, attempt = self.found, self.found.attempt
        if self.cursor.run_id and self.cursor.attempt == attempt:
            run = get_run(self.client, self.cursor.run_id)
            if run is not None:
                return run
        self.cursor = state.Cursor(self.cursor.file, self.cursor.tracking_uri, attempt=attempt)
        experiment_id, parent_id = study_parent(self.client, self.study, found.start_time)
        identity = found.identity(self.run_dir)
        run = self._settle(find_runs(self.client, experiment_id, IDENTITY, identity))
        if run is None:
            if self.run_dir.path.parent.name == "runs":
                folder = self.run_dir.path.absolute().parents[1]
                pages.prepare(self.client, experiment_id, parent_id, folder)
            run = self.client.create_run(
                experiment_id,
                start_time=found.start_time,
                run_name=self.config.name + (f" (attempt {attempt + 1})" if attempt else ""),
                tags={IDENTITY: identity, ATTEMPT: str(attempt), PARENT: parent_id},
            )
        self.cursor.save(experiment_id=experiment_id, run_id=run.info.run_id)
        return run

    def _settle(self, runs: Sequence[Run]) -> Run | None:
        """The run of this attempt, if it is there; earlier attempts end, and twins are deleted.

        A twin comes of a request whose answer came too late, so that it was made again.
        """
        ours = [run for run in runs if _attempt(run) == self.found.attempt]
        ours.sort(key=lambda run: -run.data.metrics.get("samples", -1.0))
        for twin in ours[1:]:
            self.client.delete_run(twin.info.run_id)
        for earlier in (run for run in runs if _attempt(run) < self.found.attempt):
            why = self.found.rolled_back(_attempt(earlier))
            tags = {"reopold.message": why, "reopold.status": "rolled back"}
            set_tags(self.client, earlier, tags)
            if earlier.info.status != "KILLED":
                set_status(self.client, earlier, "KILLED", self.found.ended)
        return ours[0] if ours else None

    def _describe(self, run: Run, fresh: Sequence[state.Evaluation]) -> None:
        """Tags as they are now; parameters once."""
        where = home.relative(self.run_dir.path)
        tags = records.tags(self.config, self.found, self.study, where)
        tags["reopold.config_digest"] = self.run_dir.digest()
        if bad := records.non_finite(self._unsent(run), fresh):
            known = run.data.tags.get("reopold.non_finite", "").split(", ")
            tags["reopold.non_finite"] = ", ".join(dict.fromkeys([*filter(None, known), *bad]))
        set_tags(self.client, run, tags)
        if not self.cursor.recipe:
            log_params(self.client, run, self.run_dir.recipe().model_dump(mode="json"))

    def _send_files(self) -> None:
        """The recipe and its changes whenever they change, the manifest at each status."""
        recipe, status = state.recipe_digest(self.run_dir), self.found.manifest["status"]
        files = [self.run_dir.config_file, self.run_dir.changes_file]
        if self.cursor.recipe != recipe:
            self._upload(files)
            self.cursor.save(recipe=recipe)
        if self.cursor.described != status:
            self._upload([self.run_dir.manifest_file])
            self.cursor.save(described=status)

    def _upload(self, files: Sequence[Path]) -> None:
        for file in files:
            if file.exists():
                self.client.log_artifact(self.run_id, str(file))

    def _unsent(self, run: Run) -> list[Record]:
        """The steps that MLflow lacks.

        `samples` grows with every step and travels with it in one transaction: its latest value
        says what has arrived. A step that runs again after a resume has the same `samples`.
        """
        arrived = run.data.metrics.get("samples", -math.inf)
        arrived = max([arrived, *(line["samples"] for line in self.cursor.sending)])
        return [line for line in self.found.lines if line["samples"] > arrived]

    def _send_metrics(self, run: Run) -> tuple[int, int]:
        """Send the steps that MLflow lacks, whole steps in each batch; returns steps and points.

        A batch whose answer never came may have arrived, be lost or still be on its way, and its
        steps may have run again since. So it goes first, as it was: MLflow takes the same point
        (key, time, step, value) once.
        """
        fresh = self._unsent(run)
        waiting = [line["step"] for line in fresh]
        behind = (
            min(waiting) if waiting else max((s["step"] + 1 for s in self.found.lines), default=0)
        )
        self.cursor.next_step = max(self.cursor.next_step, behind)
        batches = [self.cursor.sending] if self.cursor.sending else []
        steps = points = 0
        for batch in (*batches, *records.step_batches(fresh)):
            points += self._send_batch(batch)
            steps += len(batch)
        return steps, points

    def _send_batch(self, batch: list[Record]) -> int:
        from mlflow.entities import Metric

        points = [
            Metric(key, value, int(line["time"] * 1000), line["step"])
            for line in batch
            for key, value in records.finite(line).items()
        ]
        self.cursor.save(sending=batch)
        self.client.log_batch(self.run_id, metrics=points)
        self.cursor.save(sending=[], next_step=max(self.cursor.next_step, batch[-1]["step"] + 1))
        return len(points)

    def _send_evaluation(self, evaluation: state.Evaluation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        benchmark, digest = evaluation.benchmark, evaluation.dataset_digest
        model = self._model(evaluation)
        source = json.dumps({"uri": str(evaluation.results["dataset"]["path"])})
        dataset = Dataset(benchmark, digest, "local", source)
        with home.locked(home.mlflow_lock()):  # one row, shared by the study's runs
            context = InputTag("mlflow.data.context", "eval")
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])
        when = (evaluation.time, evaluation.step, model.model_id, benchmark, digest)
        points = [Metric(key, value, *when) for key, value in evaluation.scores().items()]
        # MLflow's charts pair the n-th points of two metrics: a score needs an x axis of its own.
        samples = self._samples(evaluation.step)
        points.append(Metric("eval/samples", samples, evaluation.time, evaluation.step))
        self.client.log_batch(self.run_id, metrics=points)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.cursor.save(
            evaluations={**self.cursor.evaluations, evaluation.key: evaluation.content},
            models={**self.cursor.models, str(evaluation.step): model.model_id},
        )

    def _send_dialogues(self) -> int:
        """Traces of the dialogues kept with each checkpoint; returns how many were sent."""
        attempt, sent = self.found.attempt, 0
        origin = Origin(
            experiment_id=self.cursor.experiment_id,
            run_id=self.run_id,
            identity=f"{self.found.identity(self.run_dir)}/{attempt}",
            tags={"run": self.config.name, "method": self.config.method, "study": self.study},
        )
        for found in self.found.episodes:
            if found.dialogues and self.cursor.traces.get(str(found.step)) != found.content:
                sent += send_episodes(self.client, origin, found)
                self.cursor.save(traces={**self.cursor.traces, str(found.step): found.content})
        return sent

    def _model(self, evaluation: state.Evaluation) -> LoggedModel:
        """The checkpoint's logged model, found by digest or made; it holds no weights."""
        from mlflow.entities import LoggedModelOutput

        step, config, digest = evaluation.step, self.config, evaluation.model_digest
        experiment_id = self.cursor.experiment_id
        wanted = f"source_run_id = '{self.run_id}' AND tags.digest = '{digest}'"
        found = sorted(
            self.client.search_logged_models([experiment_id], wanted),
            key=lambda model: -len(model.metrics or []),
        )
        for twin in found[1:]:
            self.client.delete_logged_model(twin.model_id)
        where = home.relative(self.run_dir.checkpoint(step))
        model = (
            found[0]
            if found
            else self.client.create_logged_model(
                experiment_id,
                name=f"{re.sub(r'[^A-Za-z0-9_-]', '-', config.name)}-step-{step:06d}",
                source_run_id=self.run_id,
                model_type="checkpoint",
                params={"step": str(step), "samples": str(self._samples(step))},
                tags=records.model_tags(config, self.study, digest, where),
            )
        )
        if model.model_id not in self.linked:  # twice is an error
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
            self.linked.add(model.model_id)
        return model

    def _samples(self, step: int) -> int:
        """Drawn in the first `step` steps."""
        lines = self.found.lines
        return next((line["samples"] for line in lines if line["step"] == step - 1), 0)


def _attempt(run: Run) -> int:
    return int(run.data.tags.get(ATTEMPT, "0"))
