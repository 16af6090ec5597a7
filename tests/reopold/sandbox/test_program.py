"""What a program finds, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reopold.sandbox import Limits, SandboxFailure, child, isolation, modes, program, run_program
from reopold.sandbox.child import Child, Mode
from reopold.sandbox.program import status_of
from tests.reopold.sandbox.surroundings import MARK, marked_processes, use

REPOSITORY = Path(__file__).parents[3]


def test_a_script_is_the_main_module_and_reads_its_input() -> None:
    outcome = run_program("print(__name__, input()[::-1], input())", stdin="ünï\n2\n")
    assert (outcome.status, outcome.stdout, outcome.returncode) == ("ok", "__main__ ïnü 2\n", 0)
    assert outcome.result is None
    assert 0 < outcome.cpu_seconds <= outcome.seconds + 0.5


def test_an_input_larger_than_any_pipe_arrives_whole() -> None:
    text = "x" * 5_000_000
    outcome = run_program("import sys; print(len(sys.stdin.read()))", stdin=text)
    assert outcome.stdout == "5000000\n"


def test_the_input_cannot_be_changed_by_the_program() -> None:
    code = "import os\ntry: os.pwrite(0, b'y', 0)\nexcept OSError: print('refused')\nprint(input())"
    assert run_program(code, stdin="x").stdout == "refused\nx\n"


def test_the_environment_is_a_fixed_one() -> None:
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    found = json.loads(run_program(code).stdout)
    assert found.pop("REOPOLD_SANDBOX_TEST") == MARK
    assert found["HOME"] == found["TMPDIR"]
    assert set(found) == {
        *("PATH", "LANG", "HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUTF8"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    }


def test_hashes_are_the_same_in_every_run() -> None:
    code = "print(hash('reopold'), list({'a', 'b', 'c', 'd'}))"
    assert run_program(code).stdout == run_program(code).stdout


def test_the_folder_is_empty_and_no_other_program_sees_what_is_written() -> None:
    code = "import os; print(os.listdir()); open('x', 'w').write('1'); print(open('x').read())"
    for _ in range(2):
        assert run_program(code).stdout == "[]\n1\n"


def test_each_program_has_a_user_of_its_own_and_sees_no_other_process() -> None:
    held = isolation()
    if held.user != "own" or held.processes != "hidden":
        pytest.skip(held.text)
    code = """
    import os, time
    time.sleep(0.5)
    print(os.getuid(), os.getgid(), os.getgroups())
    print([name for name in os.listdir("/proc") if name.isdigit()] == [str(os.getpid())])
    """
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda text: run_program(text).stdout, [textwrap.dedent(code)] * 2))
    users = [text.splitlines()[0].split() for text in found]
    assert all(user == group != "0" and groups == "[]" for user, group, groups in users)
    assert users[0] != users[1]
    assert all(text.splitlines()[1] == "True" for text in found), found


def test_installed_packages_can_be_used_and_our_own_cannot() -> None:
    outcome = run_program("import numpy\nprint(numpy.ones(2).sum())\nimport reopold")
    assert outcome.stdout == "2.0\n"
    if isolation().files == "hidden":
        assert "No module named 'reopold'" in outcome.stderr


def test_processes_of_its_own_and_threads_work() -> None:
    code = """
    import asyncio, subprocess, sys, threading
    from concurrent.futures import ProcessPoolExecutor
    if __name__ == "__main__":
        with ProcessPoolExecutor(2) as pool:
            print(list(pool.map(abs, [-1, 2])))
        thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
        asyncio.run(asyncio.sleep(0))
        print(subprocess.run([sys.executable, "-c", "print(3)"], capture_output=True).stdout)
    """
    outcome = run_program(textwrap.dedent(code))
    assert outcome.stdout == "[1, 2]\nthread\nb'3\\n'\n", outcome


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_up_to_the_limit_is_kept_and_one_byte_more_ends_the_program(stream: str) -> None:
    limits = Limits(output_bytes=100_000)
    write = f"import sys; sys.{stream}.write('a' * {{}} + 'z'); sys.{stream}.flush()"
    kept = run_program(write.format(99_999), limits=limits)
    assert kept.status == "ok" and getattr(kept, stream) == "a" * 99_999 + "z"
    over = run_program(write.format(100_000) + "\nwhile True: pass", limits=limits)
    assert over.status == "output_limit" and over.returncode is None
    assert getattr(over, stream) == "a" * 99_999 + "z"


def test_output_that_was_written_before_the_time_ran_out_is_kept() -> None:
    outcome = run_program(
        "import time; print('early', flush=True); time.sleep(60)", limits=Limits(seconds=0.5)
    )
    assert (outcome.status, outcome.stdout) == ("timeout", "early\n")
    assert 0.5 <= outcome.seconds < 5


def test_a_program_that_ended_in_time_is_not_waited_for() -> None:
    started = time.monotonic()
    code = "import os, time\nif os.fork() == 0: time.sleep(60)"
    assert run_program(code, limits=Limits(seconds=30)).status == "ok"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("report", "asked", "stderr", "status"),
    [
        ({"returncode": 0}, "", "", "ok"),
        ({"returncode": 0, "refused": 2}, "", "", "ok"),
        ({"returncode": 0}, "output_limit", "", "output_limit"),
        ({"returncode": 1}, "", "ValueError: MemoryError", "runtime_error"),
        ({"returncode": 1}, "", "x\nMemoryError", "memory"),
        ({"returncode": 1}, "", "x\nnumpy._core._exceptions._ArrayMemoryError: no", "memory"),
        ({"returncode": 1}, "", "OSError: [Errno 12] Cannot allocate memory", "memory"),
        ({"returncode": 1, "refused": 1}, "", "PermissionError: 13", "forbidden"),
        ({"returncode": -signal.SIGSYS}, "", "", "forbidden"),
        ({"returncode": -signal.SIGXCPU}, "", "", "timeout"),
        ({"returncode": -signal.SIGKILL, "cpu_seconds": 2.1}, "", "", "timeout"),
        ({"returncode": -signal.SIGKILL, "cpu_seconds": 0.1}, "", "", "runtime_error"),
        ({"returncode": -signal.SIGKILL, "out_of_memory": True}, "", "", "memory"),
        ({"returncode": 1, "out_of_memory": True}, "", "", "runtime_error"),
        ({"returncode": -signal.SIGSEGV}, "", "", "runtime_error"),
        ({"returncode": None, "reason": "timeout"}, "", "", "timeout"),
        ({"returncode": None, "reason": "memory"}, "", "", "memory"),
        ({"returncode": None, "reason": "processes"}, "", "", "runtime_error"),
    ],
)
def test_status_of_a_report(report: dict[str, Any], asked: str, stderr: str, status: str) -> None:
    base = {"reason": None, "refused": 0, "cpu_seconds": 0.1, "out_of_memory": False}
    assert status_of(base | report, asked, stderr, Limits(seconds=1.5)) == status


def test_a_sandbox_that_breaks_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Frail(Child):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)
            if len(started) == 1:
                assert self._process is not None
                self._process.kill()

    modes.mode()
    monkeypatch.setattr(program, "Child", Frail)
    outcome = run_program("import time; time.sleep(0.3); print(1)")
    assert (outcome.status, outcome.stdout, len(started)) == ("ok", "1\n", 2)


def test_a_sandbox_that_breaks_twice_says_nothing_about_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes.mode()
    monkeypatch.setattr(child, "_PYTHON", ("/nowhere/python",))
    with pytest.raises(SandboxFailure, match=r"broke twice: .*could not be started"):
        run_program("print(1)")


def test_nothing_runs_where_no_mode_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_PYTHON", ("/nowhere/python",))
    with pytest.raises(SandboxFailure, match="no program can be run here"):
        modes.probe()


def test_a_supervisor_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    modes.mode()
    monkeypatch.setattr(child, "_PATIENCE", 0.2)

    class Stopped(Child):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            assert self._process is not None
            self._process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(program, "Child", Stopped)
    with pytest.raises(SandboxFailure):
        run_program("import time; time.sleep(60)", limits=Limits(seconds=0.2))


@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
def test_programs_end_with_the_platform(full: bool, tmp_path: Path) -> None:
    use((Mode(full, True), Mode(full, False)))()
    script = f"""
    from reopold.sandbox import child, modes, run_program, Limits
    child._ENVIRONMENT["REOPOLD_SANDBOX_TEST"] = {MARK!r}
    modes._found[:] = [modes.probe((child.Mode({full}, True), child.Mode({full}, False)))]
    print("ready", flush=True)
    run_program("import time; time.sleep(100)", limits=Limits(seconds=200))
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    platform = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert platform.stdout is not None
    platform.stdout.readline()
    wait_for(lambda: any("main.py" in line for line in marked_processes()))
    platform.kill()
    platform.wait()
    platform.stdout.close()
    wait_for(lambda: not marked_processes())
    wait_for(lambda: not list(tmp_path.iterdir()))


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_many(count: int) -> None:
    """That many programs, some of which end badly, and nothing of any left."""
    modes.mode()
    codes = [
        "print({0})",
        "import os; os.fork(); os.setsid() if os.getpid() % 2 else 0; print({0})",
        "open('x', 'w').write('y'); raise ValueError({0})",
        "import subprocess, sys\nsubprocess.Popen(['sleep', '99'], start_new_session=True)",
    ]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    numbers = range(count)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda n: run_program(codes[n % 4].format(n)), numbers))
    for number, outcome in zip(numbers, outcomes, strict=True):
        if number % 4 == 0:
            assert (outcome.status, outcome.stdout) == ("ok", f"{number}\n")
        if number % 4 == 2:
            assert outcome.stderr.endswith(f"ValueError: {number}\n")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert marked_processes() == []


def test_a_hundred_programs_leave_nothing() -> None:
    run_many(100)


@pytest.mark.slow
def test_a_thousand_programs_leave_nothing() -> None:
    run_many(1000)


def test_what_holds_here_is_said_in_one_line() -> None:
    text = isolation().text
    assert "\n" not in text
    assert ("PARTIAL" in text) != isolation().complete
    assert "network" in text and "files" in text
