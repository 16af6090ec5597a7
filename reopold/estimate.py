"""What a run will need before it is started: memory of each GPU, hours, GPU-hours, money, disk.

Arithmetic on the sizes of the models and the data sheet of the GPU; no torch, no weights, no hub.
Memory of activations follows what autograd keeps (a test counts it); times rest on the shares of
the peak in :class:`Assumptions`, and have not been compared with a GPU: expect them within a factor
of two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from reopold.bounds import BACKWARD, CACHE_BYTES, CHUNK_LOGITS, FORWARD, SCORED_TOKENS
from reopold.config import (
    DISTILLATION_METHODS,
    ConfigError,
    Family,
    RunConfig,
    ServingConfig,
    TeacherConfig,
)
from reopold.shapes import Shape, shape_of

GIB = 2**30
#: Bytes a parameter of the student: float32 weight; gradient and AdamW's two moments where it
#: learns; and the copy that autocast keeps of it with train.precision bfloat16 (with
#: train.recompute_layers, of one layer at a time).
WEIGHT, LEARNT, AUTOCAST = 4, 12, 2
#: A checkpoint holds the weights and AdamW's two moments.
CHECKPOINT = 12
#: Bytes of activations that the backward pass needs, a position and layer, in units of the hidden
#: width, of the keys' width and of the MLP's (tests/reopold/test_estimate.py counts them).
ACTIVATIONS = {"float32": (32.2, 8.6, 16.0), "bfloat16": (30.2, 4.6, 8.0)}
#: With train.recompute_layers a layer keeps its float32 input.
INPUT = 4
#: Of the last hidden states and the norm before the head, in units of the hidden width.
LAST = 9.4
#: Of a logit: the head works in three float32 buffers.
LOGITS_BYTES = 3 * 4
#: CUDA's context and libraries, and the share of its memory that the trainer's allocator wastes.
CONTEXT, FRAGMENTS = 1.5 * GIB, 0.05
#: Beside weights and cache in a vLLM process: its graphs and activations.
VLLM_BYTES = 2 * GIB
#: Of a score over the vocabulary: a vLLM teacher holds its float32 log-probs twice.
SCORE_BYTES = 2 * 4
#: Sequences that vLLM decodes at once.
VLLM_SEQUENCES = 256
#: Seconds a decoded token that no batch makes shorter: vLLM's scheduler; launches of a layer of
#: plain transformers.
VLLM_SECONDS, LAYER_SECONDS = 3e-3, 1e-3
#: Bytes a second at which new weights reach a sampler on another GPU.
HANDOVER = 2e9
#: Positions of a prompt where nobody has counted them; with pictures most are theirs.
PROMPT_TOKENS: dict[Family, int] = {"maths": 200, "visual": 1200, "tools": 700, "code": 600}


@dataclass(frozen=True)
class Gpu:
    """A data sheet (NVIDIA's, dense, SXM boards) and an assumed price."""

    name: str
    memory: float
    """GiB that a process can have."""
    bandwidth: float
    """Bytes a second."""
    bfloat16: float
    """FLOPs a second."""
    float32: float
    """FLOPs a second without TF32, which float32 training does not use."""
    price: float
    """US dollars an hour: an assumption, of on-demand offers in 2026; give your own."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80gb", 78, 2.04e12, 312e12, 19.5e12, 1.6),
        Gpu("h100", 78, 3.35e12, 989e12, 67e12, 2.5),
        Gpu("h200", 139, 4.8e12, 989e12, 67e12, 3.5),
    )
}


@dataclass(frozen=True)
class Assumptions:
    """What nobody knows before the run."""

    response_share: float = 0.6
    """Mean length of a response, as a share of the longest."""
    training: float = 0.35
    """Share of the peak that forward and backward passes reach."""
    scoring: float = 0.5
    """The same of a forward pass alone."""
    decoding: float = 0.6
    """Share of the memory's bandwidth."""
    resampling: float = 2.0
    """dapo: batches that are drawn for a step, up to objective.resample_rounds."""


@dataclass(frozen=True)
class Part:
    """Memory on one of the run's GPUs."""

    gpu: int
    what: str
    gib: float


@dataclass
class Estimate:
    gpu: Gpu
    gpus: int
    parts: list[Part] = field(default_factory=list)
    tight: list[str] = field(default_factory=list)
    """Models that their share of a GPU does not hold, in words."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of one step, by what it is spent on."""
    steps: int = 0
    evaluation_hours: float = 0.0
    host_gib: float = 0.0
    """Of the machine's memory: a checkpoint that is written behind the training."""
    disk_gib: float = 0.0
    """Of the checkpoints that stay."""

    @property
    def hours(self) -> float:
        """Of the clock: training, then the evaluations of its checkpoints."""
        return self.steps * sum(self.seconds.values()) / 3600 + self.evaluation_hours

    @property
    def gpu_hours(self) -> float:
        """An evaluation has one GPU."""
        training = self.hours - self.evaluation_hours
        return self.gpus * training + self.evaluation_hours

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.gpu.price

    def memory(self, gpu: int) -> float:
        """GiB of one of the run's GPUs."""
        return sum(part.gib for part in self.parts if part.gpu == gpu)

    @property
    def full(self) -> list[int]:
        """GPUs that do not hold what the recipe places on them."""
        return [gpu for gpu in range(self.gpus) if self.memory(gpu) > self.gpu.memory]

    @property
    def faults(self) -> list[str]:
        """What does not fit where the recipe places it, in words."""
        has = f"the {self.gpu.name} has {self.gpu.memory:g}"
        return [
            *self.tight,
            *(f"GPU {gpu} needs {self.memory(gpu):.0f} GiB and {has}" for gpu in self.full),
        ]


def estimate(
    config: RunConfig,
    gpu: Gpu,
    *,
    evaluated: int = 0,
    assume: Assumptions | None = None,
) -> Estimate:
    """The needs of a run on GPUs of one kind.

    Args:
        evaluated: answers sampled for one checkpoint: questions x samples of all benchmarks.

    Raises:
        ConfigError: the sizes of one of its models are not known (:mod:`reopold.shapes`).
    """
    return _Estimator(config, gpu, assume or Assumptions()).run(evaluated)


def activation_bytes(shape: Shape, tokens: float, precision: str, *, recompute: bool) -> float:
    """What the layers keep for the backward pass of a micro-batch of so many positions."""
    of_hidden, of_keys, of_mlp = ACTIVATIONS[precision]
    layer = of_hidden * shape.hidden + of_keys * shape.kv_width + of_mlp * shape.intermediate
    last = LAST * shape.hidden
    if not recompute:
        return tokens * (shape.layers * layer + last)
    return tokens * (shape.layers * INPUT * shape.hidden + layer + last)


@dataclass(frozen=True)
class _Lengths:
    """Tokens of prompts and responses."""

    prompt: float
    response: float
    """Mean."""
    longest: float

    @property
    def whole(self) -> float:
        return self.prompt + self.response


def scorers(config: RunConfig) -> list[tuple[str, str, TeacherConfig]]:
    """Models that score a run's rollouts, beside the student: what, path, where."""
    if config.method not in DISTILLATION_METHODS:
        return []
    found = [("teacher", config.model.teacher, config.teacher)]
    found += [("teacher", each.model, each) for each in config.teachers]
    if config.method == "exopd":  # in the trainer's process
        found.append(("reference", config.model.reference or config.model.student, TeacherConfig()))
    return found


def checkpoints(config: RunConfig, parameters: float) -> int:
    """Bytes on disk of the checkpoints that a run keeps, at their most."""
    train, written = config.train, len(config.checkpoint_steps())
    kept = min(written, train.keep_last + train.keep_best) if train.keep_last else written
    # One more is written before the oldest goes; save_every's makes room for itself.
    extra = (kept < written) + bool(train.save_every)
    return round((kept + extra) * CHECKPOINT * parameters)


def trainer_memory(
    config: RunConfig, shape: Shape, longest: float, device: str = "cuda"
) -> dict[str, float]:
    """Bytes that the trainer holds at its fullest, in the update, by what they are for.

    Args:
        shape: of the student.
        longest: positions of a prompt and a response.
    """
    train = config.train
    copied = train.precision == "bfloat16" and not train.recompute_layers
    frozen = shape.tower_parameters if config.model.freeze_vision else 0
    weights = (WEIGHT + AUTOCAST * copied) * shape.parameters
    weights += LEARNT * (shape.parameters - frozen)
    kept = config.samples_per_step if train.keep_activations else train.micro_batch
    tokens = min(kept, config.samples_per_step) * longest
    layers = activation_bytes(shape, tokens, train.precision, recompute=train.recompute_layers)
    logits = LOGITS_BYTES * CHUNK_LOGITS[device]
    head = logits + 4 * shape.head_parameters + 4 * tokens * shape.hidden
    held = {
        "student, gradient and AdamW": weights, "activations": layers, "head and loss": head,
    }  # fmt: skip
    if device == "cuda":
        held["CUDA and fragments"] = CONTEXT + FRAGMENTS * sum(held.values())
    return held


class _Estimator:
    """One run on one kind of GPU."""

    def __init__(self, config: RunConfig, gpu: Gpu, assume: Assumptions) -> None:
        self.config, self.gpu, self.assume = config, gpu, assume
        self.student = shape_of(config.model.student)
        self.teachers = [(what, shape_of(path), serving) for what, path, serving in scorers(config)]
        self.lengths = self._lengths(config.sampling.max_new_tokens)
        self.samples = config.samples_per_step
        self.width = 2 if config.model.dtype == "bfloat16" else 4
        self.found = Estimate(gpu, config.gpus, steps=config.train.steps)

    def run(self, evaluated: int) -> Estimate:
        self._trainer_memory()
        if self.config.method != "sft":
            self._place("student's sampler", self.student, self.config.engine)
        for what, shape, serving in self.teachers:
            self._place(what, shape, serving, scores=True)
        self._step()
        self._evaluation(evaluated)
        self.found.disk_gib = checkpoints(self.config, self.student.parameters) / GIB
        return self.found

    def _lengths(self, longest: int) -> _Lengths:
        prompt = PROMPT_TOKENS[self.config.family]
        return _Lengths(prompt, self.assume.response_share * longest, longest)

    def _add(self, gpu: int, what: str, size: float) -> None:
        self.found.parts.append(Part(gpu, what, size / GIB))

    def _trainer_memory(self) -> None:
        longest = self.lengths.prompt + self.lengths.longest
        for what, size in trainer_memory(self.config, self.student, longest).items():
            self._add(0, what, size)
        self.found.host_gib = CHECKPOINT * self.student.parameters / GIB

    def _place(
        self, what: str, shape: Shape, serving: ServingConfig, *, scores: bool = False
    ) -> None:
        """Memory of a model that samples or scores, wherever the recipe has it."""
        if serving.urls:
            return
        if serving.kind == "hf":
            # The sampler shares the trainer's float32 weights.
            cache = min(2 * self._cache(shape), CACHE_BYTES)
            size = self.width * shape.parameters if scores else cache
            self._add(0, what if scores else f"{what}'s cache", size)
            return
        share = serving.memory_fraction * self.gpu.memory * GIB
        needed = self.width * shape.parameters + VLLM_BYTES
        if scores:
            needed += SCORE_BYTES * SCORED_TOKENS * shape.rows
        if needed > share:
            self.found.tight.append(
                f"the {what} needs {needed / GIB:.0f} GiB and memory_fraction "
                f"{serving.memory_fraction:g} of a GPU gives it {share / GIB:.0f}"
            )
        for gpu in serving.gpus or [0] * serving.replicas:
            self._add(gpu, what, share)

    def _cache(self, shape: Shape) -> float:
        return self.samples * (self.lengths.prompt + self.lengths.longest) * shape.cache_per_token

    def _step(self) -> None:
        """Teachers on GPUs of their own score while the student still samples."""
        config, seconds = self.config, self.found.seconds
        read = self.samples * self.lengths.whole
        peak = self.gpu.bfloat16 if config.train.precision == "bfloat16" else self.gpu.float32
        own = read * _products(self.student, self.lengths.whole) / peak
        teaching = sum(self._teaching(shape, serving, read) for _, shape, serving in self.teachers)
        if config.method == "sft":
            sampling, scoring = 0.0, 0.0
        else:
            replicas = config.engine.replicas if config.engine.kind == "server" else 1
            rounds = 1.0
            if config.method == "dapo":
                rounds = min(self.assume.resampling, config.objective.resample_rounds)
            width = 4 if config.engine.kind == "hf" else self.width
            share = self.samples / replicas
            sampling = rounds * self._decoding(config.engine, share, self.lengths, width)
            scoring = own * FORWARD / self.assume.scoring
        apart = all(s.kind != "hf" and s.overlap for _, _, s in self.teachers)
        seconds["sampling"] = sampling
        seconds["teacher"] = max(0.0, teaching - sampling) if apart else teaching
        seconds["student's scores"] = scoring
        forward = (not config.train.keep_activations) + config.train.recompute_layers
        passes = BACKWARD + FORWARD * forward
        seconds["update"] = own * passes / self.assume.training
        seconds["handover"] = 0.0
        if config.method != "sft" and config.engine.kind != "hf":
            seconds["handover"] = 2 * self.student.parameters / HANDOVER

    def _teaching(self, shape: Shape, serving: ServingConfig, read: float) -> float:
        if serving.urls:
            return 0.0  # somebody else's GPUs, of which nothing is known
        replicas = serving.replicas if serving.kind == "server" else 1
        peak = self.gpu.bfloat16 if self.width == 2 else self.gpu.float32
        flops = FORWARD * read * _products(shape, self.lengths.whole)
        return flops / (replicas * peak * self.assume.scoring)

    def _decoding(
        self, serving: ServingConfig, samples: float, lengths: _Lengths, width: int
    ) -> float:
        """Seconds to sample so many responses of the student on one GPU; the longest end alone.

        Args:
            width: bytes of a weight.
        """
        shape = self.student
        if serving.urls:
            return 0.0
        weights = width * shape.parameters
        cache = shape.cache_per_token * width / 2
        if serving.kind == "hf":
            room: float = CACHE_BYTES
            most, pause = samples, LAYER_SECONDS * shape.layers
        else:
            room = serving.memory_fraction * self.gpu.memory * GIB - weights - VLLM_BYTES
            most, pause = VLLM_SEQUENCES, VLLM_SECONDS
        together = max(1.0, min(samples, most, room / (cache * lengths.whole)))
        bandwidth = self.gpu.bandwidth * self.assume.decoding
        peak = (self.gpu.bfloat16 if width == 2 else self.gpu.float32) * self.assume.scoring

        def token(sequences: float) -> float:
            read = weights + sequences * cache * (lengths.prompt + lengths.response / 2)
            computed = FORWARD * sequences * _products(shape, lengths.whole)
            return pause + max(read / bandwidth, computed / peak)

        tail = (lengths.longest - lengths.response) * token(1.0)
        return samples / together * lengths.response * token(together) + tail

    def _evaluation(self, evaluated: int) -> None:
        config = self.config
        alone = ServingConfig(kind="vllm", memory_fraction=0.9)
        serving = alone if config.evaluation.engine == "vllm" else ServingConfig()
        if evaluated and config.evaluation.engine != "server":
            lengths = self._lengths(config.evaluation.max_new_tokens)
            seconds = self._decoding(serving, evaluated, lengths, self.width)
            self.found.evaluation_hours = len(config.checkpoint_steps()) * seconds / 3600


def _products(shape: Shape, length: float) -> float:
    """Multiply-adds of a forward pass at one position, attention to those before it included."""
    return shape.parameters + shape.layers * shape.hidden * length


def find_gpu(name: str, price: float | None = None) -> Gpu:
    """Raises ConfigError: no GPU of that name is known."""
    if name not in GPUS:
        raise ConfigError(f"no GPU '{name}'; choose one of {', '.join(GPUS)}")
    return GPUS[name] if price is None else replace(GPUS[name], price=price)
