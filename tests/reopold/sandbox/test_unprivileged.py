"""The sandbox of a platform that is not root, and of one that may not make namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
NOBODY = 65534

#: The interpreter may lie where root alone may go: show it at the same place to everybody.
SHOW = """
set -e
mount --bind "$1" "$2"
mount -t tmpfs -o mode=755 tmpfs "$(echo "$1" | cut -d/ -f1-2)"
mkdir -p "$1"
mount --bind "$2" "$1"
shift 2
exec "$@"
"""
BECOME = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
PROGRAMS = {
    "honest": "print(input())",
    "daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(99)",
    "kills_everything": "import os\nos.kill(-1, 9)",
    "kills_parent": "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass",
    "fork_bomb": "import os\nwhile True: os.fork()",
    "network": "import socket\nsocket.socket()",
    "repository": f"open({str(REPOSITORY / 'pyproject.toml')!r})",
    "litter": "open('/var/tmp/reopold-litter', 'w')",
    "environment": "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())",
    "no_modes": "import os\nos.mkdir('x')\nos.mkdir('x/y')\nos.chmod('x', 0)",
}
SCRIPT = """
import json, os, sys
if sys.argv[1] == "restricted":
    from reopold.sandbox.inside import seccomp
    seccomp.install(None)
from reopold.sandbox import Limits, isolation, run_program
limits = Limits(seconds=5.0, memory_bytes=1 << 29)
programs = json.loads(sys.argv[2])
found = {name: run_program(code, stdin="x", limits=limits) for name, code in programs.items()}
held = isolation()
print(json.dumps({
    "uid": os.getuid(),
    "isolation": [held.network, held.processes, held.files, held.user, held.calls, held.complete],
    "ends": {name: [outcome.status, outcome.stdout] for name, outcome in found.items()},
    "left": [name for name in os.listdir(os.environ["TMPDIR"])],
}))
"""


def run_as_nobody(way: str, tmp_path: Path) -> dict[str, Any]:
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("only root, with unshare and setpriv, can become nobody for a test")
    if not os.access(REPOSITORY, os.X_OK) or REPOSITORY.stat().st_mode & 0o5 != 0o5:
        pytest.skip(f"nobody may not read {REPOSITORY}")
    python = tmp_path / "python"
    python.mkdir()
    temporary = Path("/var/tmp") / f"reopold-nobody-{os.getpid()}-{way}"
    temporary.mkdir()
    os.chown(temporary, NOBODY, NOBODY)
    command = [*BECOME, sys.executable, "-B", "-c", SCRIPT, way, json.dumps(PROGRAMS)]
    prefix = Path(sys.base_prefix)
    if not all(folder.stat().st_mode & 0o1 for folder in (prefix, *prefix.parents)):
        command = ["unshare", "--mount", "sh", "-c", SHOW, "sh", str(prefix), str(python), *command]
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        shutil.rmtree(temporary)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["uid"] == NOBODY
    assert found["left"] == []
    assert not Path("/var/tmp/reopold-litter").exists()
    return found


def test_without_privileges_a_user_namespace_cuts_programs_off(tmp_path: Path) -> None:
    found = run_as_nobody("free", tmp_path)
    if found["isolation"] != ["absent", "hidden", "hidden", "same", True, True]:
        pytest.skip(f"this kernel lets nobody have namespaces: {found['isolation']}")
    ends = found["ends"]
    assert ends["honest"] == ["ok", "x\n"]
    assert {name: ends[name][0] for name in PROGRAMS if name != "honest"} == {
        "daemon": "ok",
        "kills_everything": "runtime_error",
        "kills_parent": "ok",
        "fork_bomb": "runtime_error",
        "network": "forbidden",
        "repository": "runtime_error",
        "litter": "runtime_error",
        "environment": "runtime_error",
        "no_modes": "ok",
    }


def test_where_namespaces_are_forbidden_the_filter_and_landlock_hold_and_this_is_said(
    tmp_path: Path,
) -> None:
    found = run_as_nobody("restricted", tmp_path)
    network, processes, files, user, calls, complete = found["isolation"]
    assert (network, processes, user, calls) == ("refused", "shielded", "same", True)
    assert not complete
    ends = {name: status for name, (status, _) in found["ends"].items()}
    assert ends["honest"] == ends["daemon"] == ends["kills_parent"] == ends["no_modes"] == "ok"
    # The filter above leaves ours no listener: what is refused is not counted.
    assert ends["network"] == ends["kills_everything"] == ends["fork_bomb"] == "runtime_error"
    if files == "refused":
        assert ends["repository"] == ends["litter"] == ends["environment"] == "runtime_error"
