"""A real MLflow server that can be killed and run out of disk, and a network that can go wrong."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tasks import home


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` over a SQLite file, on a port of its own."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "served")]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while home.http_status(f"{self.url}/health") != 200:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        """Without warning."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def limit_files(self, size: int) -> None:
        """No file of the server may grow beyond `size` bytes: its writes fail as on a full disk."""
        assert self.process is not None
        for entry in Path("/proc").iterdir():
            with suppress(ValueError, ProcessLookupError):
                if os.getpgid(int(entry.name)) == self.process.pid:
                    limits = (size, resource.RLIM_INFINITY)
                    resource.prlimit(int(entry.name), resource.RLIMIT_FSIZE, limits)


ERROR_500 = b"HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
Fault = Literal["none", "hold request", "lose answer", "answer 500"]


class Network:
    """A TCP proxy before a server. What carries `marker` (points of metrics) goes wrong as set."""

    def __init__(self, port: int, marker: bytes = b'"timestamp"') -> None:
        self.target, self.marker = port, marker
        self.fault: Fault = "none"
        self.release = threading.Event()
        self.hit = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            mute = threading.Event()
            back = threading.Thread(target=self._back, args=(server, client, mute), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(1 << 20):
                    fault = self.fault if self.marker in data else "none"
                    self.hit += fault != "none"
                    if fault == "answer 500":
                        _rest(client)
                        client.sendall(ERROR_500)
                        break
                    if fault == "hold request":  # it arrives long after the client has given up
                        data += _rest(client)
                        self.release.wait()
                        server.sendall(data)
                        time.sleep(1.0)  # the server answers to nobody
                        break
                    if fault == "lose answer":
                        mute.set()
                    server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket, mute: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if not mute.is_set():
                    client.sendall(data)


def _rest(client: socket.socket) -> bytes:
    """What else the client sends before it waits, or gives up."""
    data = b""
    client.settimeout(0.3)
    with suppress(OSError):
        while more := client.recv(1 << 20):
            data += more
    client.settimeout(None)
    return data
