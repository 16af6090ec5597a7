"""Forward and backward of output head and loss, beside what others ship.

`make benchmarks-head` (a quiet machine, about 12 minutes): 1,024 tokens, 151,936 ids, float32,
beside TRL's IWOPDTrainer, TRL's fused head with entropy (GRPOTrainer), miniVERL's chunked K1 and
the bare matrix products. CPU seconds are medians of interleaved repetitions in one process; peak
memory is that of a fresh process each, above what it held with its inputs made. Kept in
.reopold/benchmarks-head.json. Where a GPU is visible the same runs there in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from reopold.loss import fused_policy_loss
from reopold.rollouts import Credit

VOCABULARY = 151_936
#: Tokens of a chunk of the bare products: what the fused loss takes on a CPU.
CHUNK = 64
Run = Callable[[], Any]


@dataclass
class Inputs:
    """One step's tokens; R and pi_old are constants, as they are in training."""

    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor
    teacher_N: Tensor
    old_N: Tensor

    @classmethod
    def make(cls, tokens: int, width: int, device: str, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        hidden = normal(tokens, width).mul_(width**-0.5).requires_grad_()
        targets = torch.randint(VOCABULARY, (tokens,), generator=generator, device=device)
        teacher = -12.0 * torch.rand(tokens, generator=generator, device=device)
        weight = normal(VOCABULARY, width).requires_grad_()
        return cls(hidden, weight, targets, teacher, teacher - 0.3)

    def clear(self) -> None:
        self.hidden_ND.grad = self.weight_VD.grad = None


def ours(x: Inputs, share: float = 1.0) -> Run:
    generator = torch.Generator().manual_seed(1)
    keep = torch.zeros(len(x.targets_N), dtype=torch.bool)
    keep[torch.randperm(len(keep), generator=generator)[: round(share * len(keep))]] = True
    credit = Credit(x.teacher_N - x.old_N, keep.to(x.targets_N.device))

    def run() -> None:
        x.clear()
        loss, _, _ = fused_policy_loss(
            x.hidden_ND, x.weight_VD, x.targets_N, x.old_N, credit, normaliser=credit.keep_N.sum()
        )
        loss.backward()

    return run


def bare(x: Inputs) -> Run:
    """The three products alone, chunk by chunk in one buffer."""
    chunk = CHUNK if x.hidden_ND.device.type == "cpu" else 512

    @torch.no_grad()
    def run() -> None:
        x.clear()
        buffer_CV = x.hidden_ND.new_empty(chunk, VOCABULARY)
        hidden, weight = torch.empty_like(x.hidden_ND), torch.zeros_like(x.weight_VD)
        for first in range(0, len(hidden), chunk):
            rows = slice(first, first + chunk)
            logits_CV = buffer_CV[: len(x.targets_N[rows])]
            torch.mm(x.hidden_ND[rows], x.weight_VD.T, out=logits_CV)
            torch.mm(logits_CV, x.weight_VD, out=hidden[rows])
            weight.addmm_(logits_CV.T, x.hidden_ND[rows])
        x.hidden_ND.grad, x.weight_VD.grad = hidden, weight

    return run


def trl_iw_opd(x: Inputs) -> Run:
    from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer

    trainer: Any = IWOPDTrainer.__new__(IWOPDTrainer)
    trainer.temperature, trainer.iw_opd_gamma, trainer.iw_opd_epsilon = 1.0, 0.0, 1e-8
    trainer.model = torch.nn.Module()
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}

    def run() -> None:
        x.clear()
        logits = (x.hidden_ND @ x.weight_VD.T)[None]
        targets = x.targets_N[None]
        trainer._compute_iw_opd_loss(logits, targets, targets, x.teacher_N[None]).backward()

    return run


def trl_fused(x: Inputs) -> Run:
    """The kernel under GRPOTrainer, and the policy loss on top of it."""
    from trl.trainer import utils

    def run() -> None:
        x.clear()
        logprobs, *_ = utils._ChunkedLogProbFunction.apply(
            x.hidden_ND,
            x.weight_VD,
            None,
            x.targets_N,
            1.0,
            utils._CHUNKED_LOGPROB_CHUNK_SIZE,
            None,
            1.0,
            ("log_probs", "entropy"),
        )
        ratio = (logprobs - x.old_N).exp()
        (-(ratio * (x.teacher_N - x.old_N)).mean()).backward()

    return run


def miniverl(x: Inputs) -> Run:
    from miniverl.losses import chunked_selected_position_loss
    from miniverl.losses.chunked import VerlPGK1TargetProvider

    def run() -> None:
        x.clear()
        chunked_selected_position_loss(
            hidden_states=x.hidden_ND,
            lm_head=lambda hidden: hidden @ x.weight_VD.T,
            weights=torch.ones_like(x.teacher_N),
            provider=VerlPGK1TargetProvider(
                target_token_ids=x.targets_N,
                old_actor_log_probs=x.old_N,
                teacher_sampled_token_log_probs=x.teacher_N,
            ),
            chunk_size=128,
            backward=True,
        )

    return run


def liger(x: Inputs) -> Run:
    """Liger's fused linear cross-entropy: the same products, another loss (GPU only)."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()

    def run() -> None:
        x.clear()
        loss(x.weight_VD, x.hidden_ND, x.targets_N).backward()

    return run


CONTENDERS: dict[str, tuple[Callable[[Inputs], Run], str]] = {
    "bare products": (bare, ""),
    "reopold": (ours, ""),
    "reopold, 20 % of tokens kept": (lambda x: ours(x, 0.2), ""),
    "trl IWOPDTrainer": (trl_iw_opd, "trl"),
    "trl fused head with entropy": (trl_fused, "trl"),
    "miniverl K1, chunk 128": (miniverl, "miniverl"),
    "liger fused cross-entropy": (liger, "liger_kernel"),
}


def available(device: str) -> list[str]:
    return [
        name
        for name, (_, package) in CONTENDERS.items()
        if (not package or importlib.util.find_spec(package))
        and (device == "cuda" or not name.startswith("liger"))
    ]


def status(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def measure_memory(name: str, tokens: int, width: int) -> dict[str, float]:
    """Peak of this process above what it held with its inputs made; and one run's seconds."""
    x = Inputs.make(tokens, width, "cpu", torch.float32)
    run = CONTENDERS[name][0](x)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the library's own buffers
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    started = time.process_time()
    run()
    return {"peak_mb": status("VmHWM") - base, "cpu_seconds": time.process_time() - started}


def in_a_fresh_process(name: str, tokens: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.head", "--one", name]
    command += ["--tokens", str(tokens), "--width", str(width)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_time(
    names: list[str], tokens: int, width: int, repetitions: int, device: str, dtype: torch.dtype
) -> dict[str, float]:
    """Median seconds of each (of the CPU, on a CPU); they take turns, after an unmeasured round."""
    x = Inputs.make(tokens, width, device, dtype)
    runs = {name: CONTENDERS[name][0](x) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            started = clock(device)
            run()
            if repetition:
                seconds[name].append(clock(device) - started)
            say(f"  width {width}, round {repetition} of {repetitions}: {name}")
    return {name: median(measured) for name, measured in seconds.items()}


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def on_cpu(repetitions: int, widths: list[int]) -> dict[str, Any]:
    names = available("cpu")
    found: dict[str, Any] = {}
    for width in widths:
        times = measure_time(names, 1024, width, repetitions, "cpu", torch.float32)
        memory = {}
        for name in names:
            say(f"  width {width}, memory: {name}")
            memory[name] = in_a_fresh_process(name, 1024, width)["peak_mb"]
        found[f"width {width}"] = {
            name: {"cpu_seconds": times[name], "peak_mb": memory[name]} for name in names
        }
    lengths = {}
    for tokens in (1024, 8192, 65_536):
        say(f"  {tokens} tokens")
        one = in_a_fresh_process("reopold", tokens, 64)
        one["peak_mb_without_hidden_gradient"] = one["peak_mb"] - tokens * 64 * 4 / 2**20
        lengths[str(tokens)] = one
    return {**found, "tokens, width 64": lengths}


def on_gpu(repetitions: int) -> dict[str, Any]:
    """bfloat16; the limit is the time of the bare products."""
    found: dict[str, Any] = {}
    for width in (1536, 3584):
        for tokens in (8192, 65_536):
            names = [n for n in available("cuda") if n != "trl IWOPDTrainer" or tokens <= 8192]
            times = measure_time(names, tokens, width, repetitions, "cuda", torch.bfloat16)
            rows = {}
            for name in names:
                x = Inputs.make(tokens, width, "cuda", torch.bfloat16)
                run = CONTENDERS[name][0](x)
                base = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                run()
                peak = (torch.cuda.max_memory_allocated() - base) / 2**20
                rows[name] = {"seconds": times[name], "peak_mb": peak}
            found[f"width {width}, {tokens} tokens"] = rows
    return found


def show(found: dict[str, Any]) -> None:
    for title, rows in found.items():
        print(f"\n{title}")
        first = seconds_of(next(iter(rows.values())))
        for name, row in rows.items():
            cells = "   ".join(f"{label} {value:10.2f}" for label, value in row.items())
            print(f"  {name:34} {cells}   {seconds_of(row) / first:6.2f}x the first's time")


def seconds_of(row: dict[str, float]) -> float:
    return row["cpu_seconds"] if "cpu_seconds" in row else row["seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.head", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 1536])
    parser.add_argument("--one", choices=list(CONTENDERS), help="memory of one, in this process")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure_memory(options.one, options.tokens, options.width)))
        return 0
    found = {"cpu": on_cpu(options.repetitions, options.widths)}
    if torch.cuda.is_available():
        found["gpu"] = on_gpu(options.repetitions)
    else:
        say("no GPU is visible: its part was not run")
    for part in found.values():
        show(part)
    out = Path(os.environ.get("REOPOLD_HOME", ".reopold")) / "benchmarks-head.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": options.threads, **found}
    out.write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(f"\nkept in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
