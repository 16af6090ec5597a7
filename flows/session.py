"""What surrounds a flow that the command line runs: state folder, signals, server, display.

Importable without prefect, which reads its settings when it is imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def run_flow(run: Callable[[], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Run a flow under our state folder, our signals and a progress display."""
    from tasks.home import configure_environment
    from tasks.launch import own_signals

    configure_environment()
    own_signals()
    _start_prefect()
    from flows.terminal import display

    with display(quiet):
        return run()


def _start_prefect() -> None:
    """Reach Prefect's server, or start the ephemeral one deaf to the terminal's Ctrl-C.

    Ctrl-C goes to every process of the group, and the stages that end because of it still have to
    report. A signal blocked at the start of a child stays blocked in it.
    """
    from prefect.client.orchestration import get_client

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if not os.environ.get("PREFECT_API_URL"):
        _guard_ephemeral_server()
    if failure is not None:
        url = os.environ.get("PREFECT_API_URL", "its ephemeral server")
        from reopold.config import ConfigError

        raise ConfigError(
            f"Prefect does not answer at {url}: {failure}; unset PREFECT_API_URL to "
            "run without a server"
        )


def _guard_ephemeral_server() -> None:
    """Prefect's own server watches nobody: it would outlive a killed command."""
    from prefect.server.api.server import SubprocessASGIServer

    from tasks.launch import guard

    server = SubprocessASGIServer().server_process  # there is one a process
    if server is not None:
        guard(server.pid)
