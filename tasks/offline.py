"""`reopold preflight --offline`: a recipe checked where its GPUs, weights and data are not.

What can be known from the recipe and the sizes of its models: whether the parts go together, fit
where they are placed, and what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks import find
from evals.benchmarks.places import default_folders, find_files
from evals.evaluation import check_settings
from reopold.config import (
    GROUP_METHODS,
    ConfigError,
    EvaluationConfig,
    RunConfig,
)
from reopold.data.published import SOURCES, PromptSource
from reopold.estimate import PROMPT_TOKENS, Assumptions, Estimate, Gpu, estimate, scorers
from reopold.preflight import Check, batch, contents, read_data, temperature
from reopold.shapes import Shape, shape_of
from reopold.study_config import StudyConfig


@dataclass(frozen=True)
class Offline:
    """What was found, and what the run would need; None of a study, and where models are not
    known."""

    checks: list[Check]
    needs: Estimate | None


def preflight_offline(config: RunConfig, gpu: Gpu, assume: Assumptions | None = None) -> Offline:
    """Check a run without its models, its data or a GPU."""
    found = [*batch(config), temperature(config)]
    found += _data(config)
    found += [_benchmark(settings) for settings in config.evaluations]
    try:
        models = {path: shape_of(path) for path in _models(config)}
        needs = needed(config, gpu, assume)
    except ConfigError as error:
        return Offline([*found, Check("models", "fail", str(error), "see the message")], None)
    found += [*_tokenizers(config, models), *_images(config, models), _length(config, models)]
    found += _fits(needs)
    found += _costs(needs)
    return Offline(found, needs)


def preflight_study_offline(
    study: StudyConfig, gpu: Gpu, assume: Assumptions | None = None
) -> Offline:
    """Every arm; what several have in common is said once.

    Raises:
        ConfigError: the study trains the embedded suite's models, which need no such check.
    """
    if study.embedded:
        raise ConfigError(
            f"{study.name} trains its own models on the CPU: `reopold study FILE --dry-run` says "
            "what that takes"
        )
    said: dict[Check, list[str]] = {}
    hours = dollars = gpu_hours = 0.0
    for arm in study.arms:
        one = preflight_offline(study.recipe(arm), gpu, assume)
        for check in one.checks:
            said.setdefault(check, []).append(arm.name)
        if one.needs is not None:
            hours += len(arm.seeds) * one.needs.hours
            gpu_hours += len(arm.seeds) * one.needs.gpu_hours
            dollars += len(arm.seeds) * one.needs.dollars
    runs = sum(len(arm.seeds) for arm in study.arms)
    whole = f"{runs} runs: {hours:,.0f} hours one after another, {gpu_hours:,.0f} GPU-hours"
    checks = [_named(check, arms, len(study.arms)) for check, arms in said.items()]
    return Offline([*checks, Check("study", "pass", f"{whole}, about ${dollars:,.0f}")], None)


def needed(config: RunConfig, gpu: Gpu, assume: Assumptions | None = None) -> Estimate:
    """The estimate of a run, evaluations included.

    Raises:
        ConfigError: the sizes of one of its models are not known, or a benchmark is not.
    """
    answers = sum(_items(each) * each.samples for each in config.evaluations)
    return estimate(config, gpu, evaluated=answers, assume=assume)


def _items(settings: EvaluationConfig) -> int:
    """Questions that are asked; 0 where a benchmark may have any number."""
    return settings.limit or next(iter(find(settings.benchmark).items), 0)


def _named(check: Check, arms: list[str], every: int) -> Check:
    if len(arms) == every:
        return check
    return Check(f"{check.name} ({', '.join(arms)})", check.status, check.found, check.mend)


def _models(config: RunConfig) -> list[str]:
    return [config.model.student, *(path for _, path, _ in scorers(config))]


def _data(config: RunConfig) -> Iterator[Check]:
    missing = [s for s in (config.data.train, *(m.train for m in config.data.mix)) if not _there(s)]
    for path in missing:
        source = _source(path)
        if source is None:
            yield Check("data", "warn", f"{path} is not here", "make it: docs/data.md has the form")
            continue
        yield Check(
            "data",
            "warn",
            f"{path} is not here: {source.title}, {source.licence}",
            f"reopold prompts {source.name}",
        )
        if config.data.reward not in (source.reward, "none"):
            yield Check(
                "reward",
                "fail" if config.method in GROUP_METHODS else "warn",
                f"data.reward '{config.data.reward}' does not read the answers of {source.title}",
                f"set data.reward to '{source.reward}'",
            )
    if not missing:
        try:
            yield from contents(config, read_data(config))
        except ConfigError as error:
            yield Check("data", "fail", str(error), "see the message")


def _there(path: str) -> bool:
    return Path(path).expanduser().is_file()


def _source(path: str) -> PromptSource | None:
    """The published set that `reopold prompts` would write there."""
    return SOURCES.get(Path(path).parent.name)


def _benchmark(settings: EvaluationConfig) -> Check:
    try:
        benchmark = check_settings(settings)
    except ConfigError as error:
        return Check("benchmark", "fail", str(error), "see the message")
    here = find_files(benchmark.source, default_folders())
    found = f"{benchmark.name}: {_items(settings)} items x {settings.samples} samples"
    if here or benchmark.source.hub:
        return Check("benchmark", "pass", f"{found}, {'here' if here else 'from the hub'}")
    return Check("benchmark", "warn", f"{found}, not here", "see `reopold evaluate --list`")


def _tokenizers(config: RunConfig, models: dict[str, Shape]) -> Iterator[Check]:
    """Whether the others have the student's ids, as far as the catalogue tells."""
    student = models[config.model.student]
    others = {path: shape for path, shape in models.items() if path != config.model.student}
    for path, shape in others.items():
        known = student.tokenizer and shape.tokenizer
        kin = shape.tokenizer.startswith(student.tokenizer) or student.tokenizer.startswith(
            shape.tokenizer
        )
        if known and student.tokenizer != shape.tokenizer and kin:
            found = f"{shape.tokenizer} may have the ids of {student.tokenizer}"
            yield Check("tokenizers", "warn", f"{path}: {found}", "preflight without --offline")
        elif known and student.tokenizer != shape.tokenizer:
            yield Check(
                "tokenizers",
                "fail",
                f"{config.model.student} has the ids of {student.tokenizer}, {path} those of "
                f"{shape.tokenizer}",
                "choose a teacher of the student's family",
            )
        elif known:
            yield Check("tokenizers", "pass", f"{path} has the student's ids ({shape.tokenizer})")
        else:
            yield Check("tokenizers", "warn", f"not known of {path}", "preflight without --offline")


def _images(config: RunConfig, models: dict[str, Shape]) -> Iterator[Check]:
    # Teachers of some sources may have prompts without pictures; of a local model only its loading
    # tells whether it sees.
    given = {config.model.student, config.model.teacher, config.model.reference} & models.keys()
    blind = sorted(p for p in given if models[p].ids and models[p].vision is None)
    if config.family == "visual" and blind:
        yield Check("images", "fail", f"{', '.join(blind)} takes no images", "choose other models")


def _length(config: RunConfig, models: dict[str, Shape]) -> Check:
    longest = PROMPT_TOKENS[config.family] + config.sampling.max_new_tokens
    limits = {path: shape.positions for path, shape in models.items()}
    for role, serving in (("engine", config.engine), ("teacher", config.teacher)):
        if serving.kind != "hf" and serving.max_length:
            limits[f"{role}.max_length"] = serving.max_length
    short = {name: limit for name, limit in limits.items() if limit < longest}
    found = f"prompt and response take about {longest:,} tokens"
    if short:
        least = ", ".join(f"{name} has {limit:,}" for name, limit in short.items())
        return Check("length", "fail", f"{found}: {least}", "lower sampling.max_new_tokens")
    return Check("length", "pass", found)


def _fits(needs: Estimate) -> Iterator[Check]:
    """A row a GPU."""
    mend = (
        "place models on other GPUs (engine.gpus, teacher.gpus), take a larger --gpu, or lower "
        "train.micro_batch or memory_fraction"
    )
    for gpu in range(needs.gpus):
        parts = [part for part in needs.parts if part.gpu == gpu]
        held = ", ".join(f"{part.what} {part.gib:.1f}" for part in parts) or "nothing"
        full = gpu in needs.full
        found = f"{needs.memory(gpu):.0f} of {needs.gpu.memory:g} GiB ({held})"
        yield Check(f"GPU {gpu}", "fail" if full else "pass", found, mend if full else "")
    for fault in needs.tight:
        yield Check("memory", "fail", fault, "raise its memory_fraction, or take a larger --gpu")
    yield Check("machine", "pass", f"{needs.host_gib:.0f} GiB of its memory for a checkpoint")
    yield Check("disk", "pass", f"{needs.disk_gib:.0f} GiB of checkpoints")


def _costs(needs: Estimate) -> Iterator[Check]:
    spent = ", ".join(f"{what} {seconds:.0f}" for what, seconds in needs.seconds.items() if seconds)
    step = sum(needs.seconds.values())
    yield Check(
        "time",
        "pass",
        f"about {needs.hours:.0f} hours on {needs.gpus} x {needs.gpu.name}, "
        f"{needs.evaluation_hours:.0f} of them evaluation; a step {step:.0f} "
        f"s ({spent}). Estimated, not measured: within a factor of two",
    )
    yield Check(
        "cost",
        "pass",
        f"{needs.gpu_hours:.0f} GPU-hours, about ${needs.dollars:,.0f} at "
        f"${needs.gpu.price:g} an hour (an assumed price)",
    )
