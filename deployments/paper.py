"""The table of the paper's experiments in the README: `python -m deployments.paper` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks import find
from reopold.config import RunConfig
from reopold.estimate import GPUS, Estimate
from reopold.recipes import load_recipe
from reopold.study_config import StudyConfig
from tasks.offline import needed

FOLDER = Path(__file__).parent / "recipes" / "paper"
EXPERIMENTS = ("maths-from-7b", "maths-from-32b", "visual-3b", "visual-7b", "tools", "tropd")
PLACEMENTS = ("1gpu", "4gpu", "8gpu")
#: The first that holds a run is the one it is estimated for.
LADDER = ("h100", "h200")
COLUMNS = (
    *("experiment", "benchmark rows", "`recipes/paper/`", "GPUs", "fullest GPU", "hours"),
    *("GPU-hours", "cost"),
)


@dataclass(frozen=True)
class Row:
    """One recipe for so many GPUs, of the kind that holds it."""

    experiment: str
    placement: str
    needs: Estimate

    @property
    def recipe(self) -> Path:
        return FOLDER / self.experiment / f"{self.placement}.yaml"


def rows(experiments: Sequence[str] = EXPERIMENTS) -> Iterator[Row]:
    for experiment in experiments:
        for placement in PLACEMENTS:
            if (file := FOLDER / experiment / f"{placement}.yaml").exists():
                yield Row(experiment, placement, _smallest(file))


def _smallest(file: Path) -> Estimate:
    config = load_recipe(file, RunConfig)
    for name in LADDER:
        needs = needed(config, GPUS[name])
        if not needs.faults:
            return needs
    raise ValueError(f"{file} fits no GPU of {', '.join(LADDER)}")


def targets(experiment: str) -> list[str]:
    """Benchmarks whose published rows a study shows, and those that its runs measure."""
    study = load_recipe(FOLDER / experiment / "study.yaml", StudyConfig)
    return list(dict.fromkeys([*study.evaluation.benchmarks, *study.published]))


def table() -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for experiment in EXPERIMENTS:
        study = load_recipe(FOLDER / experiment / "study.yaml", StudyConfig)
        said = (study.title, ", ".join(find(name).title for name in targets(experiment)))
        for row in rows([experiment]):
            lines.append(f"| {' | '.join((*said, *_cells(row)))} |")
            said = ("", "")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    needs = row.needs
    fullest = max(needs.memory(gpu) for gpu in range(needs.gpus))
    return (
        f"`{row.experiment}/{row.placement}.yaml`",
        f"{needs.gpus} x {needs.gpu.name}",
        f"{fullest:.0f} GiB",
        f"{needs.hours:.0f}",
        f"{needs.gpu_hours:,.0f}",
        f"${needs.dollars:,.0f}",
    )


if __name__ == "__main__":
    print(table())
