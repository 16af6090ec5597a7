"""vLLM servers that belong to a run: started from an interpreter of their own, ended with us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from reopold.bounds import SCORED_TOKENS
from reopold.config import ConfigError, ServingConfig, TeacherConfig
from reopold.engines.base import EngineFailure
from reopold.engines.vllm import settings
from reopold.engines.worker.reopold_worker import OWNER
from reopold.stopping import ShouldStop, check, never

WORKER_FOLDER = Path(__file__).resolve().parent / "worker"
#: Seconds that a server may take until it answers: a 70B model loads for minutes.
START_SECONDS = 1800.0
STOP_SECONDS = 10.0


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def start_servers(
    folder: str | Path,
    config: ServingConfig,
    *,
    name: str,
    logs: Path,
    dtype: str,
    top_k: int = 0,
    logprob_temperature: float = 1.0,
    should_stop: ShouldStop = never,
) -> list[Server]:
    """Start `config.replicas` servers of a checkpoint and wait until each answers.

    Raises:
        ConfigError: the interpreter does not exist. EngineFailure: a server died while starting
            (the message ends with its log), or took longer than START_SECONDS. StopRequested.
    """
    logs.mkdir(parents=True, exist_ok=True)
    servers: list[Server] = []
    try:
        for replica in range(config.replicas):
            port = free_port()
            command = _command(folder, config, name, port, dtype, top_k, logprob_temperature)
            environment = _environment(config, replica)
            log = logs / f"{name}-{replica}.log"
            servers.append(Server(_start(command, environment, log), _url(port), log))
        for server in servers:
            _wait(server, should_stop)
    except BaseException:
        stop_servers(servers)
        raise
    return servers


def stop_servers(servers: Sequence[Server]) -> None:
    """Ask the process groups to end, and kill what is left of them."""
    for server in servers:
        _signal(server, signal.SIGTERM)
    for server in servers:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(STOP_SECONDS)
        _signal(server, signal.SIGKILL)  # the engine core of a server that is gone
        server.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(
    folder: str | Path,
    config: ServingConfig,
    name: str,
    port: int,
    dtype: str,
    top_k: int,
    logprob_temperature: float,
) -> list[str]:
    mode = "raw_logprobs" if logprob_temperature == 1.0 else "processed_logprobs"
    options = {
        "model": str(Path(folder).resolve()) if Path(folder).exists() else str(folder),
        "served-model-name": name,
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": dtype,
        "generation-config": "vllm",
        "logprobs-mode": mode,
        "max-logprobs": str(max(top_k, 1)),
        "worker-extension-cls": "reopold_worker.ReopoldWorker",
        "gpu-memory-utilization": str(config.memory_fraction),
    }
    if config.max_length:
        options["max-model-len"] = str(config.max_length)
    flags = ["--disable-uvicorn-access-log"]
    if not torch.cuda.is_available():
        flags.append("--enforce-eager")
    if isinstance(config, TeacherConfig):
        flags += ["--max-num-batched-tokens", str(SCORED_TOKENS)]
    elif not torch.cuda.is_available():  # see VLLMEngine
        flags.append("--no-enable-chunked-prefill")
    pairs = [part for key, value in options.items() for part in (f"--{key}", value)]
    return [config.python or sys.executable, str(WORKER_FOLDER / "serve.py"), *pairs, *flags]


def _environment(config: ServingConfig, replica: int) -> dict[str, str]:
    environment = {**os.environ, **settings(), OWNER: str(os.getpid())}
    # The worker's folder and nothing else of ours: the server has packages of its own.
    environment["PYTHONPATH"] = str(WORKER_FOLDER)
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # new weights come in by collective_rpc
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = _gpu(config.gpus[replica] if config.gpus else 0)
    return environment


def _gpu(index: int) -> str:
    """The machine's name of one of the run's GPUs, which may be a part of those installed.

    Raises:
        ConfigError: the run has no such GPU.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = [str(i) for i in range(torch.cuda.device_count())]
    visible = every if named is None else named.split(",")
    if index >= len(visible):
        raise ConfigError(f"a server is placed on GPU {index} and the run has {len(visible)}")
    return visible[index]


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    try:
        with open(log, "ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError(f"no interpreter {command[0]} for vLLM's server: {error}") from error


def _wait(server: Server, should_stop: ShouldStop) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise EngineFailure(
                    f"the vLLM server at {server.url} ended with code {server.process.returncode} "
                    f"while it started; the end of {server.log}:\n{server.tail()}"
                )
            check(should_stop)
            with suppress(httpx.HTTPError):
                if client.get(f"{server.url}/health").status_code == 200:
                    return
            time.sleep(0.3)
    raise EngineFailure(
        f"the vLLM server at {server.url} did not answer within {START_SECONDS:.0f} s; see "
        f"{server.log}"
    )


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _signal(server: Server, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, number)
