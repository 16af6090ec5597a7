"""Everything about a recipe that would waste a GPU hour, checked in under a minute.

    python -m reopold.preflight CONFIG.json

prints a JSON list of checks. It runs in a process of its own, so that a flow that asks for it holds
no torch and no GPU. What reads weights is in :mod:`reopold.preflight_probes`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reopold.config import DISTILLATION_METHODS, ConfigError, RunConfig
from reopold.data.prompts import Prompt, PromptMix, check_sets, load_mix, render_prompt
from reopold.data.tokenizers import check_same_tokenizer, load_tokenizer
from reopold.environments import Budget
from reopold.recipes import parse

Status = Literal["pass", "warn", "fail"]
#: Prompts whose rendering by student's and teacher's template is compared.
COMPARED = 50
#: Prompts whose length is measured, and those among them whose images are looked at.
MEASURED, SEEN = 2000, 64


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    found: str
    mend: str = ""


def main(arguments: list[str]) -> int:
    file = Path(arguments[0])
    config = parse(json.loads(file.read_text(encoding="utf-8")), RunConfig, str(file))
    print(json.dumps([asdict(check) for check in checks(config)]))
    return 0


def checks(config: RunConfig) -> list[Check]:
    """All checks of the recipe, its data and its models; a check that raises is a failed one."""
    found: list[Check] = []
    for name, check in STAGES.items():
        try:
            found += check(config)
        except ConfigError as error:
            found.append(Check(name, "fail", str(error), "see the message"))
        except Exception as error:
            found.append(
                Check(name, "fail", f"{type(error).__name__}: {error}", "please report this")
            )
    return found


def batch(config: RunConfig) -> Iterator[Check]:
    """Whether the numbers of a step divide as one would think they do."""
    sampling, train = config.sampling, config.train
    copies = 1 if config.method == "sft" else sampling.rollouts_per_prompt
    samples = sampling.prompts_per_step * copies
    found = (
        f"{sampling.prompts_per_step} prompts x {copies} = {samples} samples a step, "
        f"{train.updates_per_step} update(s), micro-batches of {min(train.micro_batch, samples)}"
    )
    if sampling.prompts_per_step % train.updates_per_step:
        yield Check(
            "batch",
            "warn",
            f"{found}: the updates of a step have unequal sizes",
            "make sampling.prompts_per_step a multiple of train.updates_per_step",
        )
    else:
        yield Check("batch", "pass", found)


def sampling(config: RunConfig) -> Iterator[Check]:
    """top-p, top-k and temperature: what the engine renormalises biases the ratio (trl #6789)."""
    defaults = _generation_defaults(config.model.student)
    note = f"; the checkpoint's defaults ({defaults}) are not used in training" if defaults else ""
    yield temperature(config, note)


def temperature(config: RunConfig, note: str = "") -> Check:
    """Whether the policy that samples is the one that is scored."""
    found = f"top_p = 1, no top-k or min-p, temperature {config.sampling.temperature:g}{note}"
    different = config.sampling.temperature != 1.0
    corrected = config.objective.logprob_temperature == config.sampling.temperature
    if different and not corrected and config.method != "sft":
        return Check(
            "sampling",
            "warn",
            f"{found}: samples are not drawn from the policy that is scored",
            "set sampling.temperature to 1, or objective.logprob_temperature to the same value",
        )
    return Check("sampling", "pass", found)


def data(config: RunConfig) -> Iterator[Check]:
    """Prompts: found, their columns, images, length, and how often each is seen."""
    from reopold.teachers.build import check_sight

    mix = read_data(config)
    check_sight(config, mix.prompts)
    longest = longest_prompt(config, config.model.student)
    yield from contents(config, mix, f", up to {longest} tokens")
    yield from _length(config)


def contents(config: RunConfig, mix: PromptMix, note: str = "") -> Iterator[Check]:
    """What the prompts' file tells by itself, without a tokenizer."""
    prompts = mix.prompts
    drawn = config.train.steps * config.sampling.prompts_per_step
    found = f"{len(prompts)} prompts{note}, {_seen(mix, drawn)}"
    duplicates = len(prompts) - len({(p.family, p.id) for p in prompts})
    if duplicates:
        yield Check("data", "warn", f"{found}; {duplicates} ids occur twice", "make ids unique")
    else:
        yield Check("data", "pass", found)
    yield from _answers(config, prompts)
    yield from _sources(config, prompts)


def read_data(config: RunConfig) -> PromptMix:
    """Raises ConfigError: a set is no local file, or as :func:`reopold.data.prompts.load_mix`."""
    sft = config.method == "sft"
    check_sets(config.data)
    return load_mix(config.data, config.family, config.seed, completions=sft)


def budget(config: RunConfig) -> Budget:
    """Of one dialogue."""
    return Budget(calls=config.sampling.max_turns, seconds=config.sampling.tool_seconds)


def longest_prompt(config: RunConfig, path: str) -> int:
    """Tokens of the longest of the first prompts of every set, images included, in the model at
    `path`: two models may see an image in different resolutions."""
    from reopold.preflight_probes import empty_model
    from reopold.vision import Vision, expanded

    tokenizer, vision = load_tokenizer(path), Vision.of(empty_model(path), path)
    longest = 0
    for prompts in read_data(config).sets:
        looked = [prompt for prompt in prompts if prompt.images][:SEEN]
        plain = [prompt for prompt in prompts if not prompt.images][:MEASURED]
        for prompt in looked + plain:
            ids = render_prompt(tokenizer, prompt, budget(config))
            longest = max(longest, len(expanded(ids, prompt.images, vision)))
    return longest


def _seen(mix: PromptMix, drawn: int) -> str:
    """How often the prompts of each set are drawn."""
    shares = [share / sum(mix.shares) for share in mix.shares]
    times = [drawn * share / len(s) for share, s in zip(shares, mix.sets, strict=True)]
    if len(times) == 1:
        return f"each seen {times[0]:.2g} times"
    each = (f"{s[0].family} {x:.2g}" for s, x in zip(mix.sets, times, strict=True))
    return f"each seen so many times: {', '.join(each)}"


def _answers(config: RunConfig, prompts: list[Prompt]) -> Iterator[Check]:
    missing = sum(not prompt.answer for prompt in prompts)
    if config.data.reward != "none" and missing:
        yield Check(
            "answers",
            "warn",
            f"{missing} of {len(prompts)} prompts have an empty answer: no "
            "response to them is ever right",
            "fill `answer` in, or set data.reward to 'none'",
        )


def _length(config: RunConfig) -> Iterator[Check]:
    limits = {"student": config.model.student}
    if config.method in DISTILLATION_METHODS:
        limits["teacher"] = config.model.teacher
    lengths = []
    for role, path in limits.items():
        limit = _text_config(path).max_position_embeddings
        longest = longest_prompt(config, path) + config.sampling.max_new_tokens
        lengths.append(longest)
        if longest > limit:
            yield Check(
                "length",
                "fail",
                f"prompt and response may take {longest} tokens, the {role} has {limit} positions",
                "lower sampling.max_new_tokens",
            )
            return
    served = config.engine.max_length if config.engine.kind != "hf" else 0
    if served and lengths[0] > served:
        yield Check(
            "length",
            "fail",
            f"prompt and response may take {lengths[0]} tokens, engine.max_length is {served}",
            "raise engine.max_length",
        )
        return
    yield Check("length", "pass", f"prompt and response take at most {max(lengths)} tokens")


def _sources(config: RunConfig, prompts: list[Prompt]) -> Iterator[Check]:
    if not config.teachers:
        return
    known = {prompt.source for prompt in prompts}
    unused = [s for t in config.teachers for s in t.sources if s not in known]
    found = f"{len(config.teachers) + 1} teachers, sources {', '.join(sorted(known)) or 'none'}"
    if unused:
        yield Check(
            "sources",
            "fail",
            f"{found}: no prompt is of {', '.join(unused)}",
            "correct `sources`, or `source` in data.train",
        )
    else:
        yield Check("sources", "pass", found)


def tokenizers(config: RunConfig) -> Iterator[Check]:
    """Student and teachers: ids, EOS and template."""
    student = load_tokenizer(config.model.student)
    yield from _eos(config.model.student, student)
    for path in _teacher_paths(config):
        check_same_tokenizer(config.model.student, path)
        yield Check(
            "tokenizers",
            "pass",
            f"{len(student)} ids and EOS {student.eos_token!r} are the same in {path}",
        )
        yield from _template(config, student, path)


def _eos(path: str, tokenizer: Any) -> Iterator[Check]:
    """A generation config may stop at other ids than the tokenizer's EOS."""
    listed = _generation_config(path).get("eos_token_id")
    ids = set(listed if isinstance(listed, list) else [listed]) - {None}
    if ids and tokenizer.eos_token_id not in ids:
        yield Check(
            "EOS",
            "fail",
            f"the tokenizer of {path} ends with id {tokenizer.eos_token_id}, its "
            f"generation config with {sorted(ids)}: responses would not stop where they should",
            "set eos_token of the tokenizer to the one that the chat template writes",
        )
    elif len(ids) > 1:
        yield Check(
            "EOS",
            "warn",
            f"the generation config of {path} also stops at "
            f"{sorted(ids - {tokenizer.eos_token_id})}; here only {tokenizer.eos_token_id} ends a "
            "response",
            "nothing, if the chat template writes that one",
        )
    else:
        yield Check("EOS", "pass", f"a response ends with {tokenizer.eos_token!r}")


def _template(config: RunConfig, student: Any, path: str) -> Iterator[Check]:
    """A teacher that was taught another template scores 0.287 nats a token off (cookbook #796)."""
    teacher = load_tokenizer(path)
    prompts = [prompt for of_set in read_data(config).sets for prompt in of_set[:COMPARED]]
    asked = budget(config)
    different = sum(
        render_prompt(student, prompt, asked) != render_prompt(teacher, prompt, asked)
        for prompt in prompts
    )
    if different:
        yield Check(
            "template",
            "warn",
            f"the chat template of {path} renders {different} of "
            f"{len(prompts)} prompts otherwise: the teacher reads a form it was not taught",
            "choose a teacher of the student's family and stage, or align the chat templates",
        )
    else:
        yield Check("template", "pass", f"{path} renders {len(prompts)} prompts to the same ids")


def vocabulary(config: RunConfig) -> Iterator[Check]:
    """Rows of the head against real ids: padding rows must take no probability (trl #3028)."""
    real = len(load_tokenizer(config.model.student))
    foreign = config.teacher.kind == "server" and bool(config.teacher.urls)
    for path in [config.model.student, *_teacher_paths(config)]:
        rows = _text_config(path).vocab_size
        found = f"{path}: {rows} rows for {real} real ids"
        if rows < real:
            yield Check(
                "vocabulary",
                "fail",
                f"{found}: some ids have no row",
                "resize the model's embeddings, or use the tokenizer it was trained with",
            )
        elif rows > real and foreign and path != config.model.student:
            yield Check(
                "vocabulary",
                "warn",
                f"{found}: the server's softmax includes the padding rows",
                "let the run start the server (leave teacher.urls empty), which leaves them out",
            )
        else:
            padding = f", {rows - real} padding rows are left out" if rows > real else ""
            yield Check("vocabulary", "pass", found + padding)


def _teacher_paths(config: RunConfig) -> list[str]:
    if config.method not in DISTILLATION_METHODS:
        return []
    return [config.model.teacher, *(teacher.model for teacher in config.teachers)]


def _text_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model at {path}: {str(error).splitlines()[0]}") from error


def _generation_config(path: str) -> dict[str, Any]:
    from transformers import GenerationConfig

    try:
        settings: dict[str, Any] = GenerationConfig.from_pretrained(path).to_dict()
    except (OSError, ValueError):
        return {}
    return settings


def _generation_defaults(path: str) -> str:
    settings = _generation_config(path)
    neutral = {"top_p": 1.0, "top_k": 50, "min_p": None, "temperature": 1.0}
    return ", ".join(
        f"{name} {settings[name]}"
        for name, value in neutral.items()
        if settings.get(name) not in (value, None)
    )


def _probes(config: RunConfig) -> Iterable[Check]:
    from reopold.preflight_probes import probes

    return probes(config)


STAGES: dict[str, Callable[[RunConfig], Iterable[Check]]] = {
    "batch": batch,
    "sampling": sampling,
    "data": data,
    "tokenizers": tokenizers,
    "vocabulary": vocabulary,
    "models": _probes,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
