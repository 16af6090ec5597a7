"""The doctor finds what kills leave behind, mends it once, and leaves alone whatever is alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reopold.integrity import seal
from reopold.run_dir import RunDir
from tasks import doctor_disk, doctor_live, doctor_mlflow, home, orphans
from tasks.findings import Finding, guarded
from tests.conftest import REPO

MakeRun = Callable[..., Any]


def look(stage: Any, *, fix: bool = False) -> list[Finding]:
    return list(guarded("disk", stage, fix=fix))


def whole_disk(*, fix: bool = False, quick: bool = False) -> list[Finding]:
    found = look(doctor_disk.run_directories, fix=fix)
    found += look(lambda: doctor_disk.checkpoints(quick=quick), fix=fix)
    return found + look(doctor_disk.disk, fix=fix)


def checkpoint(run: RunDir, step: int) -> Path:
    folder = run.checkpoint(step)
    (folder / "trainer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "trainer" / "state.pt").write_bytes(b"moments")
    seal(folder, step)
    return folder


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


@pytest.fixture
def wreck(make_run: MakeRun) -> RunDir:
    """A run whose trainer was killed while it wrote the checkpoint after the one that is broken."""
    synthetic = make_run("opd")
    synthetic.status("running", 15)
    synthetic.held.close()
    run: RunDir = synthetic.dir
    for step in (5, 10):
        checkpoint(run, step)
    flip(run.checkpoint(10) / "model.safetensors")
    (run.checkpoints / ".step-000015.77").mkdir()
    (run.checkpoints / ".step-000015.77" / "model.safetensors").write_bytes(b"half")
    return run


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def start(
    child_env: dict[str, str], children: list[subprocess.Popen[str]]
) -> Callable[..., tuple[subprocess.Popen[str], str]]:
    """Start Python code; returns the process and the first line it prints."""

    def start(code: str, *arguments: str, **env: str) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**child_env, **env}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        children.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline().strip()

    return start


def test_a_dead_trainers_run_is_stopped_cleared_and_its_broken_checkpoint_set_aside(
    wreck: RunDir, fresh_home: Path
) -> None:
    told = whole_disk()
    where = "studies/micro/runs/opd-s1"
    assert [(each.check, each.where) for each in told] == [
        ("run directory", where),
        ("run directory", f"{where}/checkpoints/.step-*"),
        ("checkpoint", f"{where}/checkpoints/step-000010"),
    ]
    assert "SHA-256 differs" in told[2].found and "model.safetensors" in told[2].found
    assert wreck.manifest()["status"] == "running", "telling must not mend"
    assert all(each.fixed is None and each.left for each in told)

    assert [each.fixed for each in whole_disk(fix=True)] == [True, True, True, None]
    assert wreck.manifest()["status"] == "stopped" and wreck.manifest()["step"] == 15
    assert "died without a word" in wreck.manifest()["message"]
    kept = sorted(path.name for path in wreck.checkpoints.iterdir())
    assert kept == ["damaged-step-000010", "step-000005"]
    assert [(e["kind"], e["step"]) for e in wreck.events()] == [
        ("stop", 15), ("damaged_checkpoint", 10)
    ]  # fmt: skip

    (note,) = whole_disk(fix=True)
    assert not note.left and "damaged-" in note.where and " KiB that no run reads" in note.found


def test_quick_compares_sizes_only(wreck: RunDir) -> None:
    assert not look(lambda: doctor_disk.checkpoints(quick=True))
    (wreck.checkpoint(10) / "model.safetensors").write_bytes(b"short")
    (found,) = look(lambda: doctor_disk.checkpoints(quick=True))
    assert "5 bytes instead of 2048" in found.found


def test_a_run_that_is_trained_is_left_alone(wreck: RunDir, start: Any) -> None:
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom reopold.run_dir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock():\n print('held', flush=True); time.sleep(60)"
    )
    before = sorted(wreck.path.rglob("*"))
    told = whole_disk()
    trainer, _ = start(hold, str(wreck.path))
    assert whole_disk(fix=True) == []
    assert [each.mended().fixed for each in told] == [False, False, False], "not after a late start"
    assert wreck.manifest()["status"] == "running"
    assert sorted(wreck.path.rglob("*")) == before
    trainer.kill()
    trainer.wait()
    (stopped, *_) = whole_disk()
    assert f"its trainer ({trainer.pid} on " in stopped.found


def test_a_run_of_another_hosts_trainer_is_only_listed(wreck: RunDir) -> None:
    holder = {"pid": 5, "host": "elsewhere", "since": 1.0}
    (wreck.path / ".lock").write_text(json.dumps(holder))
    (found,) = whole_disk(fix=True)
    assert not found.fault and found.fix is None and "5 on elsewhere" in found.found
    assert wreck.manifest()["status"] == "running"


def test_what_a_living_flow_works_on_is_left_alone(wreck: RunDir, fresh_home: Path) -> None:
    file = fresh_home / "flows" / "1.json"
    file.parent.mkdir()
    content = {"host": "elsewhere", "folder": str(wreck.path.parent.parent), "name": "micro"}
    file.write_text(json.dumps(content))
    assert whole_disk(fix=True) == []
    file.write_text(json.dumps({**content, "folder": str(fresh_home / "studies" / "other")}))
    assert len(whole_disk()) == 3


def test_a_checkpoint_written_anew_meanwhile_is_kept(wreck: RunDir) -> None:
    (found,) = look(lambda: doctor_disk.checkpoints(quick=False))
    flip(wreck.checkpoint(10) / "model.safetensors")  # whole again
    assert found.mended().fixed is True
    assert wreck.checkpoint(10).is_dir() and wreck.events() == []


def test_a_fix_that_fails_says_why_and_stops_no_other() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space left")

    def stage() -> Iterator[Finding]:
        for fix in (fail, lambda: done.append(1)):
            yield Finding(check="disk", where="here", found="full", mend="empty it", fix=fix)
        raise ValueError("unreadable")

    first, second, broken = look(stage, fix=True)
    assert first.fixed is False and "no space left" in first.found and first.left
    assert second.fixed is True and done == [1] and not second.left
    assert "could not be checked: ValueError: unreadable" in broken.found and broken.left


def test_no_room_for_one_more_checkpoint_is_a_fault(
    wreck: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(doctor_disk.disk) == []
    monkeypatch.setattr(doctor_disk, "free_bytes", lambda: 1000)
    (found,) = look(doctor_disk.disk)
    assert found.left and "1000 bytes are free" in found.found and "takes 2." in found.found


def test_disk_use_by_kind(wreck: RunDir) -> None:
    (wreck.path / "rollouts").mkdir()
    (wreck.path / "rollouts" / "step-000005.jsonl").write_bytes(b"x" * 70)
    (use,) = doctor_disk.usage()
    on_disk = sum(p.stat().st_size for p in wreck.checkpoints.rglob("step-0*/**/*") if p.is_file())
    assert (use.study, use.checkpoints, use.rollouts, use.temporary) == ("micro", on_disk, 70, 4)


LAUNCH = """
import os, sys, time
from pathlib import Path
from tasks.home import configure_mlflow
from tasks.launch import LocalLauncher
configure_mlflow()
command = [sys.executable, "-c", *sys.argv[1:]]
job = LocalLauncher().submit(command, log=Path(os.devnull))
print(job.process.pid, flush=True)
time.sleep(60)
"""
SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"


@pytest.fixture
def orphan(start: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Start a process by our launcher, kill the launcher, and return the process's number."""
    monkeypatch.setattr(orphans, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(orphans, "NOTICE_SECONDS", 0.2)
    pids: list[int] = []

    def make(code: str, *arguments: str) -> int:
        launcher, pid = start(LAUNCH, code, *arguments)
        pids.append(int(pid))
        time.sleep(0.3)  # a deaf one has to become so
        assert pids[-1] not in orphan_pids(), "its launcher lives"
        launcher.kill()
        launcher.wait()
        return pids[-1]

    yield make
    for pid in pids:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def orphan_pids() -> list[int]:
    return [process.pid for process in orphans.orphans()]


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("code", [SLEEP, DEAF], ids=["sleeps", "is deaf to SIGTERM"])
def test_a_process_that_outlived_its_launcher_is_ended(
    orphan: Callable[..., int], code: str
) -> None:
    pid = orphan(code)
    (told,) = look(doctor_live.processes)
    assert told.where == str(pid) and "is gone" in told.found
    assert lives(pid)
    (mended,) = look(doctor_live.processes, fix=True)
    assert mended.fixed is True and not lives(pid)
    assert look(doctor_live.processes) == []


def test_an_orphan_trainer_is_left_to_save_its_checkpoint(orphan: Callable[..., int]) -> None:
    pid = orphan(SLEEP, "-m", "reopold.train", "run")
    (found,) = look(doctor_live.processes, fix=True)
    assert found.left and found.fixed is None and "it saves a checkpoint" in found.mend
    assert lives(pid)


def test_a_server_is_left_alone_while_a_flow_may_talk_to_it(
    orphan: Callable[..., int], start: Any, fresh_home: Path
) -> None:
    pid = orphan(SLEEP, "prefect", "server", "start")
    (fresh_home / "flows").mkdir()
    flow, _ = start(
        "import sys, fcntl, json, time\nf = open(sys.argv[1], 'w'); f.write('{\"pid\": 1}')\n"
        "f.flush(); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
        str(fresh_home / "flows" / "1.json"),
    )
    (found,) = look(doctor_live.processes, fix=True)
    assert found.left and "wait until no flow runs" in found.mend and lives(pid)
    flow.kill()
    flow.wait()
    assert look(doctor_live.processes, fix=True)[0].fixed is True and not lives(pid)


def test_processes_of_another_home_are_none_of_ours(
    orphan: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = orphan(SLEEP)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("REOPOLD_HOME", str(tmp_path / "elsewhere"))
        assert look(doctor_live.processes, fix=True) == []
    assert lives(pid) and orphan_pids() == [pid]


def test_a_number_that_was_given_away_again_names_nobody(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child begins before the process that has its launcher's number today."""
    monkeypatch.setattr(orphans, "NOTICE_SECONDS", 0.2)
    code = (
        "import os, sys, time\nfrom pathlib import Path\nprint('waits', flush=True)\n"
        "file = Path(sys.argv[1])\nwhile not file.exists(): time.sleep(0.02)\n"
        "env = {**os.environ, 'REOPOLD_PARENT_PID': file.read_text()}\n"
        "os.execve(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)'], env)"
    )
    child, _ = start(code, str(tmp_path / "pid"))
    time.sleep(0.1)
    later, _ = start("import time; print('later', flush=True); time.sleep(60)")
    (tmp_path / ".pid").write_text(str(later.pid))
    (tmp_path / ".pid").rename(tmp_path / "pid")
    deadline = time.monotonic() + 10
    while child.pid not in orphan_pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    (found,) = orphans.orphans()
    assert (found.pid, found.owner) == (child.pid, later.pid)


def test_the_file_of_a_dead_dashboard_is_deleted_not_a_slow_ones(
    start: Any, fresh_home: Path
) -> None:
    server, _ = start("import time; print('up', flush=True); time.sleep(60)")
    fresh_home.mkdir(exist_ok=True)
    state = {"prefect_api": "http://127.0.0.1:9/api", "urls": {}, "pids": {"Prefect": server.pid}}
    home.dashboard_file().write_text(json.dumps(state))
    assert look(doctor_live.processes, fix=True) == [], "it does not answer, but it is there"
    server.kill()
    server.wait()
    assert look(doctor_live.processes, fix=True)[0].fixed is True
    assert not home.dashboard_file().exists()


def status_in_mlflow(run: RunDir) -> str:
    from mlflow import MlflowClient

    kept = json.loads((run.path / "tracking.json").read_text())
    return str(MlflowClient(kept["tracking_uri"]).get_run(kept["run_id"]).info.status)


def test_an_open_mlflow_run_is_closed_once_nobody_is_at_work(
    tracked_home: Path, make_run: MakeRun
) -> None:
    from tasks.tracking import ship_run

    killed, steady = make_run("opd"), make_run("grpo")
    for run in (killed, steady):
        run.status("running")
        run.train(0, 4)
        ship_run(run.path)
    assert look(doctor_mlflow.mlflow_runs) == []
    killed.train(4, 6)
    killed.held.close()

    told = look(doctor_mlflow.mlflow_runs)
    assert [each.where for each in told] == ["micro: opd-s1"]
    assert [each.fixed for each in look(doctor_mlflow.mlflow_runs, fix=True)] == [True]
    assert status_in_mlflow(killed.dir) == "KILLED" and status_in_mlflow(steady.dir) == "RUNNING"
    assert json.loads((killed.path / "tracking.json").read_text())["next_step"] == 6
    assert look(doctor_mlflow.mlflow_runs) == []

    steady.held.close()
    ended = look(doctor_mlflow.mlflow_runs, fix=True)
    assert [each.where for each in ended] == ["micro: grpo-s1", "micro: the study"]
    assert status_in_mlflow(steady.dir) == "KILLED"
    assert look(doctor_mlflow.mlflow_runs) == []


def test_what_mlflow_missed_is_sent_and_its_absence_is_said(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("opd")
    run.status("stopped", 3)
    run.train(0, 3)
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        absent, waits = look(doctor_mlflow.mlflow_runs, fix=True)
        assert "127.0.0.1:9" in absent.where and absent.left
        assert waits.fixed is False and waits.left
    (waits,) = look(doctor_mlflow.mlflow_runs)
    assert "3 steps" in waits.found
    assert look(doctor_mlflow.mlflow_runs, fix=True)[0].fixed is True
    assert status_in_mlflow(run.dir) == "KILLED"


def test_a_run_of_another_machine_on_a_shared_server_is_only_listed(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both machines have the study, so both have a folder of that name."""
    from tasks.tracking import ship_run

    run = make_run("opd")
    run.status("running")
    run.train(0, 2)
    ship_run(run.path)
    run.held.close()
    theirs = json.loads((run.path / "tracking.json").read_text())
    (run.path / "tracking.json").write_text(json.dumps({**theirs, "run_id": "ours"}))
    monkeypatch.setattr(doctor_mlflow, "_in_home", lambda: False)
    found = look(doctor_mlflow.mlflow_runs, fix=True)
    assert [each.where for each in found] == ["micro: opd-s1", "micro: the study"]
    assert [(each.fault, each.fix) for each in found] == [(False, None)] * 2


def reopold(home_folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("reopold")), "doctor", *arguments],
        env={**os.environ, "REOPOLD_HOME": str(home_folder), **env}, capture_output=True,
        text=True, timeout=120, check=False, cwd=REPO,
    )  # fmt: skip


def test_the_command_starts_no_server_and_says_by_its_code_what_is_left(
    wreck: RunDir, fresh_home: Path
) -> None:
    assert reopold(fresh_home.parent / "nowhere").returncode == 2
    first = reopold(fresh_home, "--json", PREFECT_API_URL="http://127.0.0.1:9/api")
    found = json.loads(first.stdout)["findings"]
    assert first.returncode == 1 and first.stderr == ""
    assert found[0]["check"] == "Prefect"
    assert {each["check"] for each in found[1:]} == {"run directory", "checkpoint", "MLflow"}

    mended = reopold(fresh_home, "--fix")
    assert mended.returncode == 0, mended.stderr
    assert "mended" in mended.stderr and "0 left" in mended.stdout and "GiB free" in mended.stdout
    assert reopold(fresh_home).returncode == 0
    assert not list(fresh_home.rglob("prefect.db"))
