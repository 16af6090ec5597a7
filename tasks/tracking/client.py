"""Reaching MLflow, what it says where it cannot be reached, and the few calls that all share."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks import home
from tasks import tracking_records as records
from tasks.tracking_records import TrackingUnavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

#: Tags that say which run directory, and which attempt of it, a run holds.
IDENTITY, ATTEMPT, RUN_DIR = "reopold.identity", "reopold.attempt", "reopold.run_dir"
STUDY_PARENT, PARENT = "reopold.study_parent", "mlflow.parentRunId"
#: Of an experiment: MLflow's page opens on runs and models, and does not ask what it is.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
#: Seconds that a server may take to say why it refused.
ASK_SECONDS = 5
#: What these print at every attempt we say once, in our own words.
_CHATTY = {"alembic": "WARNING", "mlflow.store.db.utils": "CRITICAL", "urllib3": "ERROR"}


@contextmanager
def reaching() -> Iterator[MlflowClient]:
    """A client; what MLflow, its database, a disk or the network throws is TrackingUnavailable."""
    shown = "MLflow"
    try:
        home.configure_mlflow()
        uri = os.environ["MLFLOW_TRACKING_URI"]
        shown = records.without_password(uri)
        if uri.startswith("http"):
            # Any answer below 500 is a server: one that is not MLflow's own has no /health (404).
            answer = home.http_answer(f"{shown.rstrip('/')}/health")
            if isinstance(answer, str) or answer >= 500:
                why = records.reason(answer if isinstance(answer, str) else f"HTTP {answer}")
                raise TrackingUnavailable(shown, why)
        from mlflow import MlflowClient

        for name, level in _CHATTY.items():
            logging.getLogger(name).setLevel(level)
        with home.locked(home.mlflow_lock()):  # the first client makes the tables
            client = MlflowClient(tracking_uri=uri)
        yield client
    except TrackingUnavailable:
        raise
    except OSError as error:
        why = str(error) if error.filename else records.reason(str(error))
        raise TrackingUnavailable(shown, why) from error
    except Exception as error:
        if not _is_mlflows(error):
            raise
        raise TrackingUnavailable(shown, _why(uri, error)) from error


def _is_mlflows(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | SQLAlchemyError)


def _why(uri: str, error: Exception) -> str:
    """The reason in a line. MLflow's client throws a server's answer away with its last retry."""
    text = str(error)
    said = _ask(uri) if "error responses" in text else ""
    return ": ".join(map(records.reason, filter(None, (text, said))))


def _ask(uri: str) -> str:
    """What the server answers to a write of no consequence, a tag of the default experiment.

    Empty if it takes that: a disk may be too full for a thousand numbers and not for one.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    tag = {"experiment_id": "0", "key": "reopold.asked", "value": str(int(time.time()))}
    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/set-experiment-tag",
            "POST",
            max_retries=0,
            timeout=ASK_SECONDS,
            raise_on_status=False,
            json=tag,
        )
    except Exception as error:
        return str(error)
    try:
        return "" if answer.ok else str(json.loads(answer.text)["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text)


def study_parent(client: MlflowClient, study: str, start_time: int | None) -> tuple[str, str]:
    """Ids of the study's experiment and parent run, made where missing (`start_time` in ms)."""
    with home.locked(home.mlflow_lock()):
        experiment = client.get_experiment_by_name(study) or _new_experiment(client, study)
        if experiment.lifecycle_stage != "active":
            raise TrackingUnavailable(
                records.without_password(client.tracking_uri),
                f"experiment '{study}' is deleted in MLflow; bring it back with "
                f"`mlflow experiments restore -x {experiment.experiment_id}`",
            )
        experiment_id = str(experiment.experiment_id)
        found = find_runs(client, experiment_id, STUDY_PARENT, study)
        for twin in found[1:]:  # of a request whose answer came too late: it was made again
            for child in find_runs(client, experiment_id, PARENT, twin.info.run_id):
                client.set_tag(child.info.run_id, PARENT, found[0].info.run_id)
            client.delete_run(twin.info.run_id)
        if not found:
            tags = {
                STUDY_PARENT: study,
                "study": study,
                "mlflow.source.name": "reopold",
                "mlflow.source.type": "LOCAL",
            }
            found = [client.create_run(experiment_id, start_time, tags, study)]
        return experiment_id, str(found[0].info.run_id)


def _new_experiment(client: MlflowClient, study: str) -> Any:
    from mlflow.exceptions import MlflowException

    # A database has no place of its own for files, and MLflow's default is the current directory.
    local = client.tracking_uri.startswith("sqlite")
    place = (home.artifact_root() / study).as_uri() if local else None
    note = records.description(study, f"studies/{study}/runs")
    try:
        made = client.create_experiment(
            study, place, EXPERIMENT_TAGS | {"mlflow.note.content": note}
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
            raise
        return client.get_experiment_by_name(study)
    return client.get_experiment(made)


def find_runs(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Run]:
    """Runs that carry the tag, oldest first."""
    oldest = ["attributes.start_time ASC"]
    return list(client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", order_by=oldest))


def get_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, or None if it is not there (another database) or was deleted by hand."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def log_params(client: MlflowClient, run: Run, settings: Mapping[str, Any]) -> None:
    """Parameters that the run lacks: they are write-once, and a recipe may have changed."""
    from mlflow.entities import Param

    flat = records.flatten(settings).items()
    params = [Param(key, value) for key, value in flat if key not in run.data.params]
    for first in range(0, len(params), records.PARAMS_A_BATCH):
        batch = params[first : first + records.PARAMS_A_BATCH]
        client.log_batch(run.info.run_id, params=batch)


def set_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Tags that differ from those the run had when it was asked for."""
    from mlflow.entities import RunTag

    there, cut = run.data.tags, records.TAG_CHARS
    changed = [RunTag(k, v[:cut]) for k, v in tags.items() if v[:cut] != there.get(k, "")]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def set_status(client: MlflowClient, run: Run, status: str, ended: float) -> None:
    """Give the run its status, and where that is final the end time (Unix seconds)."""
    final = status not in ("RUNNING", "SCHEDULED")
    end_time = int(ended * 1000) if final else None
    if final and (run.info.status, run.info.end_time) != (status, end_time):
        client.set_terminated(run.info.run_id, status, end_time)
    elif not final and run.info.status != status:
        client.update_run(run.info.run_id, status)


def statuses(runs: Sequence[Run]) -> list[str]:
    return [str(run.info.status) for run in runs]
