"""What MLflow's pages show of a study beside its runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reopold.config import ConfigError
from reopold.recipes import parse
from reopold.run_dir import read_object
from reopold.study_config import StudyConfig
from tasks import home
from tasks import tracking_records as records
from tasks.tracking import published, ranking, views
from tasks.tracking.client import set_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def recipe(study_dir: Path) -> StudyConfig | None:
    """The study's; None: these runs are no study's."""
    file = study_dir / "study.json"
    if not file.exists():
        return None
    return parse(read_object(file, f"{file} is gone"), StudyConfig, str(file))


def measure(study: StudyConfig) -> tuple[str, str]:
    """Benchmark and metric that the champion is chosen by."""
    rule, evaluation = study.champion, study.evaluation
    metric = rule.metric.replace("@k", f"@{evaluation.samples}")
    return rule.benchmark or evaluation.benchmark, metric


def prepare(client: MlflowClient, experiment_id: str, parent_id: str, study_dir: Path) -> None:
    """Dress the study once, when its first run arrives: its pages are looked at while it trains.

    Published numbers come before the checkpoints, too: the page of models shows the newest first.
    """
    try:
        study = recipe(study_dir)
    except ConfigError:  # of another version: no reason to keep a run's numbers back
        return
    if study is not None and not views.saved(client, experiment_id):
        dress(client, client.get_run(parent_id), study, study_dir)


def dress(
    client: MlflowClient, parent: Run, study: StudyConfig, study_dir: Path, *, crowned: bool = False
) -> None:
    """Published numbers, saved views, the description that links to them, and the ranking.

    Args:
        crowned: a checkpoint has the alias, so that there is a page of it.
    """
    experiment_id = parent.info.experiment_id
    published.send_published(client, parent, study.name, published.shown(study, study_dir))
    found = views.save(client, experiment_id, study, parent.info.start_time)
    links = {view.name.lower(): view.link(experiment_id) for view in found}
    links["checkpoints by score"] = records.run_page(experiment_id, parent.info.run_id)
    links |= {study.champion.alias: records.registry_page(study.name)} if crowned else {}
    where = home.relative(study_dir / "runs")
    note = records.description(study.name, where, links, study.champion.alias)
    client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
    ranks = ranking.table(client, experiment_id, *measure(study))
    set_tags(client, parent, {"mlflow.note.content": ranks})
