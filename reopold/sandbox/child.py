"""A supervisor process, the program under it, and the pipes to both."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import marshal
import os
import selectors
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from reopold.sandbox.inside.root import HOME, remove
from reopold.sandbox.limits import Limits

_HERE = Path(__file__).parent
_PATIENCE = 30.0  # seconds beyond its limit after which the supervisor itself is taken for hung
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
#: As isolated as -I, but with the hash seed that -I would ignore.
_PYTHON = (sys.executable, "-s", "-P", "-B")
_HELPERS = ("__init__", "boot", "kernel", "repl", "values", "worker")
_START = (
    "import sys; sys.path.insert(0, {!r}); from inside.{} import main; del sys.path[0]; main({})"
)


class Broken(Exception):
    """The sandbox did not come to a verdict: nothing is known about the program."""


@dataclass(frozen=True)
class Mode:
    """How far a program is to be cut off."""

    namespaces: bool
    """And a root of its own."""
    change_user: bool
    """Without namespaces: where the platform's user is root."""


@dataclass(frozen=True)
class Job:
    """What is to run: a script, or a helper beside a program's source text."""

    limits: Limits
    seconds: float | None
    """Wall-clock; None: until it is ended."""
    code: str = ""
    """Of a script."""
    helper: str = ""
    """Module of `reopold.sandbox.inside` whose `main()` is run instead; it reads descriptor 3 and
    writes to descriptor 4."""
    orders: bytes | None = None
    """All that a helper reads; None for a pipe, which :meth:`Child.send` writes to."""
    stdin: bytes = b""
    answer_bytes: int = 64 << 20
    """Most that a helper may write."""


@dataclass
class Stream:
    """What is read from one pipe: its tail where it is more than the limit, in bytes."""

    descriptor: int
    limit: int
    data: bytearray = field(default_factory=bytearray)
    total: int = 0

    def read(self) -> bool:
        """Take what is there; False at its end."""
        part = os.read(self.descriptor, 1 << 16)
        self.total += len(part)
        self.data += part
        del self.data[: max(0, len(self.data) - self.limit)]
        return bool(part)

    @property
    def over(self) -> bool:
        return self.total > self.limit

    def text(self) -> str:
        return self.data.decode("utf-8", errors="replace")

    def clear(self) -> None:
        """Forget what was read; counting begins anew."""
        self.data.clear()
        self.total = 0


class Child:
    """One job under its supervisor. Leaving it as a context ends every process and file of it.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, mode: Mode, job: Job) -> None:
        self.asked = ""
        self.report: dict[str, Any] = {}
        self._job = job
        self._received = bytearray()
        self._open: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: int | None = None
        self._unsent = bytearray()
        self._folder = ""
        self.control, theirs = socket.socketpair()
        try:
            with theirs:
                if not mode.namespaces:
                    self._folder = tempfile.mkdtemp(prefix="reopold-sandbox-")
                self._start(mode, theirs.fileno())
        except BaseException:
            self.close()
            raise

    def _start(self, mode: Mode, control: int) -> None:
        job = self._job
        output, output_end = self._pipe()
        error, error_end = self._pipe()
        answer, answer_end = self._pipe()
        self.stdout = Stream(output, job.limits.output_bytes)
        self.stderr = Stream(error, job.limits.output_bytes)
        self.answers = Stream(answer, job.answer_bytes)
        if job.orders is None:
            orders, self._orders = self._pipe()
            os.set_blocking(self._orders, False)
        else:
            orders = self._memory(job.orders)
        stdin = self._memory(job.stdin)
        handed = [orders, answer_end] if job.helper else []
        message = marshal.dumps(self._setup(mode, handed))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START.format(str(_HERE), "supervisor", control)],
            stdin=stdin,
            stdout=output_end,
            stderr=error_end,
            pass_fds=(control, *handed),
            env={},
            cwd="/",
            start_new_session=True,
        )
        for descriptor in (orders, stdin, output_end, error_end, answer_end):
            self._open.remove(descriptor)
            os.close(descriptor)
        self.control.sendall(len(message).to_bytes(8, "big") + message)

    def _setup(self, mode: Mode, handed: list[int]) -> dict[str, Any]:
        """What the supervisor is sent (`reopold.sandbox.inside.setup.Setup`)."""
        job, limits = self._job, self._job.limits
        base = f"{self._folder}/program"
        home = HOME if mode.namespaces else f"{self._folder}/home"
        if job.helper:
            files = {f"{base}/inside/{name}.py": text for name, text in _helpers().items()}
            command = [*_PYTHON, "-c", _START.format(base, job.helper, "")]
        else:
            files = {f"{base}/main.py": job.code}
            command = [*_PYTHON, f"{base}/main.py"]
        if not mode.namespaces:
            Path(home).mkdir()
            for path, text in files.items():
                place = Path(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, "utf-8", errors="surrogatepass")
                for part in (place, place.parent, Path(base)):
                    part.chmod(0o755)
        return {
            "namespaces": mode.namespaces,
            "change_user": mode.change_user,
            "command": command,
            "environment": {**_ENVIRONMENT, "HOME": home, "TMPDIR": home},
            "python": _python_folders(),
            "files": files if mode.namespaces else {},
            "folder": self._folder,
            "descriptors": handed,
            "seconds": job.seconds,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "processes": limits.processes,
        }

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open |= set(ends)
        return ends

    def _memory(self, data: bytes) -> int:
        """A file of these bytes in memory that nobody can change, to be read from its start."""
        descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._open.add(descriptor)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def send(self, data: bytes) -> None:
        """Have :meth:`read` write this to a helper's orders."""
        self._unsent += data

    def _write(self, selector: selectors.BaseSelector, orders: int) -> None:
        try:
            del self._unsent[: os.write(orders, self._unsent)]
        except BrokenPipeError:  # it has ended: its report will say so
            self._unsent.clear()
        if not self._unsent:
            selector.unregister(orders)

    def end(self, why: str) -> None:
        """Have the supervisor end the program; the first reason stands."""
        if not self.asked:
            self.asked = why
            with contextlib.suppress(OSError):  # it may have ended by itself
                self.control.send(b"x")

    def read(
        self, seconds: float | None, until: Callable[[bytearray], bool] = lambda _: False
    ) -> None:
        """Read what comes until the program and all that it started have ended.

        Args:
            seconds: after which the program is ended, "timeout" being the reason; None where the
                supervisor sees to that.
            until: of the answers so far: whether enough has come to stop reading.

        Raises:
            Broken: the supervisor hung or went away.
        """
        limit = self._job.limits.seconds if seconds is None else seconds
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for stream in (self.stdout, self.stderr, self.answers):
                selector.register(stream.descriptor, selectors.EVENT_READ, stream)
            selector.register(self.control, selectors.EVENT_READ)
            if self._orders is not None and self._unsent:
                selector.register(self._orders, selectors.EVENT_WRITE)
            while selector.get_map():
                passed = time.monotonic() - started
                if passed > limit + _PATIENCE:
                    raise Broken("the supervisor hung")
                if seconds is not None and passed > seconds:
                    self.end("timeout")
                wait = 1.0 if seconds is None else max(0.01, min(1.0, seconds - passed))
                for key, _ in selector.select(wait):
                    if key.fd == self._orders:
                        self._write(selector, key.fd)
                        continue
                    if not (key.data.read() if key.data else self._receive()):
                        selector.unregister(key.fileobj)
                    if key.data and key.data.over:
                        self.end("output_limit")
                if not self.asked and until(self.answers.data):
                    if self._drain():
                        return
                    self.end("output_limit")
        self._check()

    def _drain(self) -> bool:
        """Take what the program wrote before the answer that has just come; False if too much."""
        for stream in (self.stdout, self.stderr):
            os.set_blocking(stream.descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while not stream.over and stream.read():
                    pass
            os.set_blocking(stream.descriptor, True)
        return not (self.stdout.over or self.stderr.over)

    def _receive(self) -> bool:
        try:
            part = self.control.recv(1 << 16)
        except ConnectionResetError:  # it ended before it had read that it should
            return False
        self._received += part
        return bool(part)

    def _check(self) -> None:
        if len(self._received) < 8:
            raise Broken("the supervisor went away")
        self.report = ast.literal_eval(self._received[8:].decode())
        if "failure" in self.report:
            raise Broken(str(self.report["failure"]))

    def close(self) -> None:
        """End it and free everything; a second call does nothing."""
        self.end("closed")
        self.control.close()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()
        if self._folder:
            remove(self._folder)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@cache
def _helpers() -> dict[str, str]:
    """Source by name of the modules that run beside a program."""
    return {name: (_HERE / "inside" / f"{name}.py").read_text("utf-8") for name in _HELPERS}


@cache
def _python_folders() -> dict[str, str]:
    """What the interpreter and its packages are read from: where each path leads in truth."""
    named = {str(Path(sys.executable).parent), sys.base_prefix, sys.prefix}
    named |= set(sysconfig.get_paths().values())
    return {path: os.path.realpath(path) for path in sorted(named - {""})}
