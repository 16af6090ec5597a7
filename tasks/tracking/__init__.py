"""Ship run directories to MLflow: the only package that imports mlflow (and does so when called).

    experiment   a study
    parent run   the study: its recipe, its report, each method's mean score by checkpoint
    child run    a run directory: metrics by step, tags, parameters, config.json, manifest.json;
                 one more for each attempt that a rollback began
    logged model a checkpoint that has been evaluated; its metrics name the benchmark as data set;
                 published numbers are external ones, each with a run that holds its metrics
    view         what the page shows of the experiment when its links are opened
    trace        a dialogue with tools, a few of every checkpoint

The run directory is the truth and MLflow a copy that may lag. What has arrived is asked of MLflow
itself, and what is on its way is written down before it is sent, so that nothing arrives twice:
docs/design/tracking.md. No fluent API: its active run is per thread (mlflow #15131). Calls as in
mlflow 3.17, `mlflow/tracking/client.py`.
"""

from tasks.tracking.open_runs import OpenRun, close_run, open_runs
from tasks.tracking.ranking import best_checkpoint
from tasks.tracking.shipment import ship_run
from tasks.tracking.state import Waiting, waiting, waiting_run
from tasks.tracking.studies import ship_study
from tasks.tracking_records import (
    BestCheckpoint,
    ShipReport,
    StudyReport,
    TrackingUnavailable,
)

__all__ = [
    "BestCheckpoint",
    "OpenRun",
    "ShipReport",
    "StudyReport",
    "TrackingUnavailable",
    "Waiting",
    "best_checkpoint",
    "close_run",
    "open_runs",
    "ship_run",
    "ship_study",
    "waiting",
    "waiting_run",
]
