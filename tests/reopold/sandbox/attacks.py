"""Programs that take too much, never end, or interfere with other processes.

Each prints ESCAPED where it reached what it must not reach. MARK stands for a name that no other
file or process has.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY_END = ("ok", "runtime_error", "forbidden")


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    ends: tuple[str, ...]
    """Statuses, any of which it may end in."""
    bare: bool = True
    """Whether it is held off without namespaces as well."""

    @property
    def seconds(self) -> float:
        """Its limit: short where it is to be reached, else beyond what a busy machine needs."""
        return 0.4 if "timeout" in self.ends else 30.0


def attack(name: str, ends: str | tuple[str, ...], code: str, bare: bool = True) -> Attack:
    return Attack(name, code, (ends,) if isinstance(ends, str) else ends, bare)


CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
EVER = "\nimport time\nwhile True: time.sleep(1)\n"

RESOURCES = [
    attack("fork_bomb", ("timeout", "runtime_error"), "import os\nwhile True: os.fork()"),
    attack(
        "fork_bomb_that_catches",
        ("timeout", "runtime_error"),
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    ),
    attack(
        "more_processes_than_it_may_have",
        "runtime_error",
        "import os, time\nfor _ in range(20):\n  if os.fork() == 0: time.sleep(99)\n"
        "print('ESCAPED')",
    ),
    attack(
        "thread_bomb",
        "runtime_error",
        "import threading, time\nfor _ in range(5000):\n"
        "  threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint('ESCAPED')",
    ),
    attack("memory_list", "memory", "a = []\nwhile True: a.append(' ' * 10**6)"),
    attack("memory_bytes", "memory", "b = bytearray(10**10); print('ESCAPED')"),
    attack("memory_mmap", "memory", "import mmap\nm = mmap.mmap(-1, 1 << 33)\nprint('ESCAPED')"),
    attack(
        "memory_of_children",
        "memory",
        "import os\nfor _ in range(2): os.fork()\na = [b'x' * 10**8 for _ in range(3)]" + EVER,
    ),
    attack(
        "memory_system_v",
        ANY_END,
        CALL + "if libc.shmget(0, 1 << 33, 0o1666) >= 0: print('ESCAPED')",
    ),
    attack(
        "disk_one_file",
        "runtime_error",
        "f = open('big', 'wb')\nfor _ in range(1000): f.write(bytes(10**6))\nprint('ESCAPED')",
    ),
    attack(
        "disk_many_files",
        "runtime_error",
        "for i in range(100): open(f'f{i}', 'wb').write(bytes(60000))\nprint('ESCAPED')",
        bare=False,
    ),
    attack(
        "disk_many_names",
        "runtime_error",
        "for i in range(9000): open(f'f{i}', 'wb')\nprint('ESCAPED')",
        bare=False,
    ),
    attack("disk_sparse", "runtime_error", "open('s', 'wb').truncate(1 << 40)\nprint('ESCAPED')"),
    attack(
        "many_descriptors",
        "runtime_error",
        "a = [open('/dev/null') for _ in range(100000)]\nprint('ESCAPED')",
    ),
    attack("deep_recursion", "runtime_error", "def f(n): return f(n + 1)\nf(0)"),
    attack(
        "deep_recursion_in_c",
        "runtime_error",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, n):"
        " return getattr(self, n + '')\nA().x",
    ),
    attack("huge_integer", ("timeout", "memory"), "x = 7 ** (7 ** 11)\nprint('ESCAPED')"),
    attack("huge_factorial", "timeout", "import math\nmath.factorial(10**8)"),
    attack("regular_expression", "timeout", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
    attack("busy_loop", "timeout", "while True: pass"),
    attack("sleep", "timeout", "import time\ntime.sleep(10**6)"),
    attack(
        "busy_threads",
        "timeout",
        "import threading\ndef f():\n  while True: pass\n"
        "for _ in range(3): threading.Thread(target=f).start()",
    ),
    attack("waits_for_input", "runtime_error", "input()"),
    attack("waits_for_terminal", "runtime_error", "open('/dev/tty').read()\nprint('ESCAPED')"),
    attack("output", "output_limit", "while True: print('x' * 1000)"),
    attack("output_errors", "output_limit", "import sys\nwhile True: sys.stderr.write('x' * 999)"),
    attack(
        "output_of_child",
        "output_limit",
        "import os\nos.fork()\nwhile True: os.write(1, b'y' * 9999)",
    ),
    attack("writes_then_hangs", "timeout", "print('x' * 999, flush=True)" + EVER),
]

SIGNALS = [
    attack(
        "ignores_every_signal",
        "timeout",
        "import signal\nfor s in signal.valid_signals():\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
    ),
    attack(
        "handles_cpu_limit",
        "timeout",
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
    ),
    attack(
        "blocks_every_signal",
        "timeout",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())" + EVER,
    ),
    attack("stops_itself", "timeout", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    attack("kills_itself", "runtime_error", "import os\nos.kill(os.getpid(), 9)"),
    attack("kills_parent", ANY_END, "import os\nos.kill(os.getppid(), 9)"),
    attack(
        "kills_everything",
        ANY_END,
        "import os\nfor p in (-1, *range(1, 5000)):\n  if p != os.getpid():\n"
        "    try: os.kill(p, 9)\n    except OSError: pass",
    ),
    attack("kills_its_group", "runtime_error", "import os\nos.killpg(0, 9)"),
    attack("stops_its_group", "timeout", "import os, signal\nos.killpg(0, signal.SIGSTOP)"),
    attack(
        "kills_group_of_parent",
        ANY_END,
        "import os\ntry: os.killpg(os.getpgid(os.getppid()), 9)\nexcept OSError: pass",
    ),
    attack("aborts", "runtime_error", "import os\nos.abort()"),
    attack("crashes", "runtime_error", "import ctypes\nctypes.string_at(0)"),
]

PROCESSES = [
    attack(
        "daemon",
        "ok",
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    time.sleep(1000)\n  os._exit(0)",
    ),
    attack(
        "daemon_by_exec",
        "ok",
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c',"
        " 'import time; time.sleep(1000)', 'MARK'], start_new_session=True)",
    ),
    attack(
        "shell_daemon", "ok", "import os\nos.system('nohup setsid sleep 1000 >/dev/null 2>&1 &')"
    ),
    attack(
        "child_holds_output",
        "ok",
        "import os, time\nprint('done', flush=True)\nif os.fork() == 0: time.sleep(1000)",
    ),
    attack(
        "chain_of_forks",
        ("ok", "timeout"),
        "import os, time\nend = time.monotonic() + 60\nfor _ in range(10**9):\n"
        "  if os.fork(): os._exit(0)\n  os.setsid()",
    ),
    attack(
        "zombies",
        "ok",
        "import os\nfor _ in range(5):\n  if os.fork() == 0: os._exit(0)",
    ),
    attack(
        "child_that_ignores_termination",
        "ok",
        "import os, signal, time\nif os.fork() == 0:\n  signal.signal(15, signal.SIG_IGN)\n"
        "  signal.signal(1, signal.SIG_IGN)\n  time.sleep(1000)",
    ),
    attack(
        "traced_parent",
        "forbidden",
        CALL + "import os\nif libc.ptrace(16, os.getppid(), 0, 0) == 0: print('ESCAPED')",
    ),
    attack(
        "reads_memory_of_parent",
        ("runtime_error", "forbidden"),
        "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nprint('ESCAPED')",
    ),
    attack(
        "environment_of_others",
        "ok",
        "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n"
        "  try:\n    if b'SECRET_OF_PARENT' in open(p, 'rb').read(): print('ESCAPED')\n"
        "  except OSError: pass\nimport os\nif 'SECRET_OF_PARENT' in os.environ: print('ESCAPED')",
    ),
    attack(
        "descriptors_of_others",
        "ok",
        "import glob, os\nme = str(os.getpid())\nfor p in glob.glob('/proc/[0-9]*/fd/*'):\n"
        "  if p.split('/')[2] in (me, 'self'): continue\n"
        "  try: open(p, 'rb'); print('ESCAPED')\n  except OSError: pass",
    ),
    attack(
        "inherited_descriptors",
        "ok",
        "import os\nfor d in range(3, 4096):\n  try: os.fstat(d); print('ESCAPED', d)\n"
        "  except OSError: pass",
    ),
    attack(
        "writes_on_every_descriptor",
        "ok",
        "import os\nfor d in range(3, 4096):\n  try: os.write(d, b'{\"returncode\": 0}')\n"
        "  except OSError: pass",
    ),
    attack("closes_every_descriptor", ANY_END, "import os\nos.closerange(0, 4096)"),
    attack("closes_output_and_hangs", "timeout", "import os\nos.closerange(0, 4096)" + EVER),
]
