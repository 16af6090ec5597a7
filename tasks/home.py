"""Where state lives, and the environment that keeps Prefect and MLflow inside it.

    .reopold/                 REOPOLD_HOME moves it
      prefect/                Prefect's database, profiles and results
      mlflow/                 mlflow.db and artifacts/
      logs/  dashboard.json   of a running dashboard

Importable without prefect, mlflow and torch: it has to run before the first two are imported,
because both read their settings at import.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What this process set itself, so that a later call may change it; a user's own value stays.
_ours: dict[str, str] = {}


def home() -> Path:
    """Folder of all state, absolute: REOPOLD_HOME, or `.reopold` in the current directory."""
    return Path(os.environ.get("REOPOLD_HOME") or ".reopold").resolve()


def artifact_root() -> Path:
    """Folder of MLflow's artifacts when its database is the local SQLite file."""
    return home() / "mlflow" / "artifacts"


def dashboard_file() -> Path:
    """JSON that a running dashboard keeps: `prefect_api`, `urls` and `pids`."""
    return home() / "dashboard.json"


def relative(path: Path) -> str:
    """`path` as seen from :func:`home`, so that records survive a move of it; else absolute."""
    path = path.resolve()
    return str(path.relative_to(home())) if path.is_relative_to(home()) else str(path)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold `file` against other threads and processes; the kernel frees it if the holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def mlflow_lock() -> Path:
    """Lock file of what may be made only once: MLflow's tables, an experiment, a parent run."""
    return home() / "mlflow" / ".lock"


def http_status(url: str, timeout: float = 2.0) -> int | None:
    """Status that a server at `url` answers with; None if there is no answer in `timeout` s."""
    answer = http_answer(url, timeout)
    return answer if isinstance(answer, int) else None


def http_answer(url: str, timeout: float = 2.0) -> int | str:
    """As :func:`http_status`, but where there is no answer, why."""
    if not url.startswith(("http://", "https://")):
        return "no address of a server"
    local = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    # A proxy would answer for a server on this machine that is not there.
    proxies = urllib.request.ProxyHandler({} if local else None)
    try:
        with urllib.request.build_opener(proxies).open(url, timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            return f"timeout: no answer within {timeout:g} s"
        return "connection refused" if isinstance(cause, ConnectionRefusedError) else str(cause)


def configure_environment() -> None:
    """Point Prefect and MLflow at :func:`home` and silence their terminals and telemetry.

    Call it before either is imported. A variable that the user has set keeps its value, so a
    Prefect or MLflow server elsewhere is a matter of PREFECT_API_URL or MLFLOW_TRACKING_URI.
    A running dashboard's Prefect server is used where none is named: a second server on its
    SQLite file gives "database is locked".
    """
    configure_mlflow()
    folder = home() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "PREFECT_HOME": str(folder),
        "MPLCONFIGDIR": str(home() / "matplotlib"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # 5 to 10 s on a free machine, and the default limit of 20 s fails on a busy one.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, the slots of a server that was killed would stay taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        # Only the console handler: the API still receives every line (prefect/logging.yml).
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    for name, value in settings.items():
        _set(name, value)
    dashboard = running_dashboard()
    if dashboard is not None:
        _set("PREFECT_API_URL", str(dashboard["prefect_api"]))
    elif os.environ.get("PREFECT_API_URL") == _ours.get("PREFECT_API_URL"):
        os.environ.pop("PREFECT_API_URL", None)  # ours, of a dashboard that has gone


def configure_mlflow() -> None:
    """The part of :func:`configure_environment` that shipping needs; it asks no server."""
    folder = home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "REOPOLD_HOME": str(home()),  # a child in another directory shares this state
        "DO_NOT_TRACK": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # A dead server costs seconds, not MLflow's four minutes: the run directory keeps the data.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in settings.items():
        _set(name, value)


def _set(name: str, value: str) -> None:
    current = os.environ.get(name)
    if current and current != _ours.get(name):
        return
    os.environ[name] = _ours[name] = value


def running_dashboard() -> dict[str, Any] | None:
    """Content of :func:`dashboard_file`; None if there is none or its Prefect does not answer."""
    try:
        state = json.loads(dashboard_file().read_text(encoding="utf-8"))
        return state if http_status(f"{state['prefect_api']}/health") == 200 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def amount(size: int) -> str:
    """Bytes as a person says them."""
    if size < 1024:
        return f"{size} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(len(units), (size.bit_length() - 1) // 10)
    return f"{size / 1024**power:.1f} {units[power - 1]}"
