"""Programs that try to break out, to spoil the machine, or never to end.

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

    @property
    def seconds(self) -> float:
        """Its limit: short where it is to be reached, else beyond what a busy machine needs."""
        return 0.4 if "timeout" in self.ends else 30.0


def _attack(name: str, ends: str | tuple[str, ...], code: str) -> Attack:
    return Attack(name, code, (ends,) if isinstance(ends, str) else ends)


_CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_EVER = "\nimport time\nwhile True: time.sleep(1)\n"

RESOURCES = [
    _attack("fork_bomb", ("timeout", "runtime_error"), "import os\nwhile True: os.fork()"),
    _attack(
        "fork_bomb_that_catches",
        ("timeout", "runtime_error"),
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    ),
    _attack(
        "thread_bomb",
        "runtime_error",
        "import threading, time\nfor _ in range(5000):\n"
        "  threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint('ESCAPED')",
    ),
    _attack("memory_list", "memory", "a = []\nwhile True: a.append(' ' * 10**6)"),
    _attack("memory_bytes", "memory", "b = bytearray(10**10); print('ESCAPED')"),
    _attack("memory_mmap", "memory", "import mmap\nm = mmap.mmap(-1, 1 << 33)\nprint('ESCAPED')"),
    _attack(
        "memory_of_children",
        "memory",
        "import os\nfor _ in range(2): os.fork()\na = [b'x' * 10**8 for _ in range(3)]" + _EVER,
    ),
    _attack(
        "memory_system_v",
        ANY_END,
        _CALL + "if libc.shmget(0, 1 << 33, 0o1666) >= 0: print('ESCAPED')",
    ),
    _attack(
        "disk_one_file",
        "runtime_error",
        "f = open('big', 'wb')\nfor _ in range(1000): f.write(bytes(10**6))\nprint('ESCAPED')",
    ),
    _attack(
        "disk_many_files",
        ("runtime_error", "timeout"),
        "i = 0\nwhile True:\n  open(f'f{i}', 'wb').write(bytes(60000))\n  i += 1\n"
        "  if i > 10000: print('ESCAPED')",
    ),
    _attack("disk_sparse", "runtime_error", "open('s', 'wb').truncate(1 << 40)\nprint('ESCAPED')"),
    _attack(
        "many_descriptors",
        "runtime_error",
        "a = [open('/dev/null') for _ in range(100000)]\nprint('ESCAPED')",
    ),
    _attack("deep_recursion", "runtime_error", "def f(n): return f(n + 1)\nf(0)"),
    _attack(
        "deep_recursion_in_c",
        "runtime_error",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, n):"
        " return getattr(self, n + '')\nA().x",
    ),
    _attack("huge_integer", ("timeout", "memory"), "x = 7 ** (7 ** 11)\nprint('ESCAPED')"),
    _attack("huge_factorial", "timeout", "import math\nmath.factorial(10**8)"),
    _attack("regular_expression", "timeout", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
    _attack("busy_loop", "timeout", "while True: pass"),
    _attack("sleep", "timeout", "import time\ntime.sleep(10**6)"),
    _attack(
        "busy_threads",
        "timeout",
        "import threading\ndef f():\n  while True: pass\n"
        "for _ in range(3): threading.Thread(target=f).start()",
    ),
    _attack("waits_for_input", "runtime_error", "input()"),
    _attack("waits_for_terminal", "runtime_error", "open('/dev/tty').read()\nprint('ESCAPED')"),
    _attack("output", "output_limit", "while True: print('x' * 1000)"),
    _attack("output_errors", "output_limit", "import sys\nwhile True: sys.stderr.write('x' * 999)"),
    _attack(
        "output_of_child",
        "output_limit",
        "import os\nos.fork()\nwhile True: os.write(1, b'y' * 9999)",
    ),
    _attack("writes_then_hangs", "timeout", "print('x' * 999, flush=True)" + _EVER),
]

SIGNALS = [
    _attack(
        "ignores_every_signal",
        "timeout",
        "import signal\nfor s in signal.valid_signals():\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
    ),
    _attack(
        "handles_cpu_limit",
        "timeout",
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
    ),
    _attack(
        "blocks_every_signal",
        "timeout",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())" + _EVER,
    ),
    _attack("stops_itself", "timeout", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    _attack("kills_itself", "runtime_error", "import os\nos.kill(os.getpid(), 9)"),
    _attack("kills_parent", ANY_END, "import os\nos.kill(os.getppid(), 9)"),
    _attack(
        "kills_everything",
        ANY_END,
        "import os\nfor p in (-1, *range(1, 5000)):\n  if p != os.getpid():\n"
        "    try: os.kill(p, 9)\n    except OSError: pass",
    ),
    _attack("kills_its_group", "runtime_error", "import os\nos.killpg(0, 9)"),
    _attack("stops_its_group", "timeout", "import os, signal\nos.killpg(0, signal.SIGSTOP)"),
    _attack(
        "kills_group_of_parent",
        ANY_END,
        "import os\ntry: os.killpg(os.getpgid(os.getppid()), 9)\nexcept OSError: pass",
    ),
    _attack("aborts", "runtime_error", "import os\nos.abort()"),
    _attack("crashes", "runtime_error", "import ctypes\nctypes.string_at(0)"),
]

PROCESSES = [
    _attack(
        "daemon",
        "ok",
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    time.sleep(1000)\n  os._exit(0)",
    ),
    _attack(
        "daemon_by_exec",
        "ok",
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c',"
        " 'import time; time.sleep(1000)', 'MARK'], start_new_session=True)",
    ),
    _attack(
        "shell_daemon", "ok", "import os\nos.system('nohup setsid sleep 1000 >/dev/null 2>&1 &')"
    ),
    _attack(
        "child_holds_output",
        "ok",
        "import os, time\nprint('done', flush=True)\nif os.fork() == 0: time.sleep(1000)",
    ),
    _attack(
        "chain_of_forks",
        ("ok", "timeout"),
        "import os, time\nend = time.monotonic() + 60\nfor _ in range(10**9):\n"
        "  if os.fork(): os._exit(0)\n  os.setsid()",
    ),
    _attack(
        "zombies",
        "ok",
        "import os\nfor _ in range(5):\n  if os.fork() == 0: os._exit(0)",
    ),
    _attack(
        "child_that_ignores_termination",
        "ok",
        "import os, signal, time\nif os.fork() == 0:\n  signal.signal(15, signal.SIG_IGN)\n"
        "  signal.signal(1, signal.SIG_IGN)\n  time.sleep(1000)",
    ),
    _attack(
        "traced_parent",
        "forbidden",
        _CALL + "import os\nif libc.ptrace(16, os.getppid(), 0, 0) == 0: print('ESCAPED')",
    ),
    _attack(
        "reads_memory_of_parent",
        ("runtime_error", "forbidden"),
        "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nprint('ESCAPED')",
    ),
    _attack(
        "environment_of_others",
        "ok",
        "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n"
        "  try:\n    if b'SECRET_OF_PARENT' in open(p, 'rb').read(): print('ESCAPED')\n"
        "  except OSError: pass\nimport os\nif 'SECRET_OF_PARENT' in os.environ: print('ESCAPED')",
    ),
    _attack(
        "descriptors_of_others",
        "ok",
        "import glob, os\nme = str(os.getpid())\nfor p in glob.glob('/proc/[0-9]*/fd/*'):\n"
        "  if p.split('/')[2] in (me, 'self'): continue\n"
        "  try: open(p, 'rb'); print('ESCAPED')\n  except OSError: pass",
    ),
    _attack(
        "inherited_descriptors",
        "ok",
        "import os\nfor d in range(3, 4096):\n  try: os.fstat(d); print('ESCAPED', d)\n"
        "  except OSError: pass",
    ),
    _attack(
        "writes_on_every_descriptor",
        "ok",
        "import os\nfor d in range(3, 4096):\n  try: os.write(d, b'{\"returncode\": 0}')\n"
        "  except OSError: pass",
    ),
    _attack("closes_every_descriptor", ANY_END, "import os\nos.closerange(0, 4096)"),
    _attack("closes_output_and_hangs", "timeout", "import os\nos.closerange(0, 4096)" + _EVER),
]

NETWORK = [
    _attack(
        "tcp",
        "forbidden",
        "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nprint('ESCAPED')",
    ),
    _attack(
        "tcp_listen",
        "forbidden",
        "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('ESCAPED')",
    ),
    _attack(
        "tcp_version_6",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_INET6)\nprint('ESCAPED')",
    ),
    _attack(
        "udp",
        "forbidden",
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'x', ('127.0.0.1', 53))\nprint('ESCAPED')",
    ),
    _attack(
        "raw_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint('ESCAPED')",
    ),
    _attack(
        "packet_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint('ESCAPED')",
    ),
    _attack(
        "netlink_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint('ESCAPED')",
    ),
    _attack(
        "vsock",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_VSOCK)\nprint('ESCAPED')",
    ),
    _attack(
        "host_name",
        ("forbidden", "runtime_error"),
        "import socket\nsocket.getaddrinfo('example.org', 80)\nprint('ESCAPED')",
    ),
    _attack(
        "abstract_socket_of_the_machine",
        "runtime_error",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0MARK')\nprint('ESCAPED')",
    ),
    _attack(
        "socket_by_old_calls",
        ANY_END,
        _CALL + "for n in (41, 198):\n  if libc.syscall(n, 2, 1, 0) >= 3: print('ESCAPED')",
    ),
    _attack(
        "ring_instead_of_calls",
        ANY_END,
        _CALL + "if libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0: print('ESCAPED')",
    ),
    _attack(
        "download",
        "forbidden",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:80')\nprint('ESCAPED')",
    ),
]

FILES = [
    _attack(
        "reads_the_repository",
        "runtime_error",
        "open('REPOSITORY/pyproject.toml').read()\nprint('ESCAPED')",
    ),
    _attack(
        "reads_the_home",
        "ok",
        "import os\nfor p in ('/root/.bashrc', '/root/.ssh', '/home', '/etc/shadow'):\n"
        "  try:\n    os.listdir(p) if os.path.isdir(p) else open(p).read()\n"
        "    print('ESCAPED', p)\n  except OSError: pass",
    ),
    _attack(
        "reads_the_parents_file",
        "runtime_error",
        "open('SECRET_FILE').read()\nprint('ESCAPED')",
    ),
    _attack(
        "symlink_to_the_parents_file",
        "runtime_error",
        "import os\nos.symlink('SECRET_FILE', 'link')\nopen('link').read()\nprint('ESCAPED')",
    ),
    _attack(
        "overwrites_the_parents_file",
        "runtime_error",
        "open('SECRET_FILE', 'w').write('spoilt')\nprint('ESCAPED')",
    ),
    _attack(
        "symlinks_for_the_cleaner",
        "ok",
        "import os\nos.mkdir('d')\nos.symlink('SECRET_FOLDER', 'd/link')\nos.symlink('/', 'all')\n"
        "os.chmod('d', 0)",
    ),
    _attack("no_modes_on_home", ANY_END, "import os\nos.mkdir('x')\nos.chmod('.', 0)"),
    _attack(
        "removes_home", ANY_END, "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)"
    ),
    _attack(
        "deep_folders",
        ANY_END,
        "import os\nfor _ in range(500):\n  os.mkdir('d' * 60)\n  os.chdir('d' * 60)",
    ),
    _attack(
        "litter",
        "ok",
        "import os, tempfile\nfor d in ('/tmp', '/var/tmp', '/dev/shm', '/', '/usr', '/program',\n"
        "    os.environ['HOME'], tempfile.gettempdir()):\n"
        "  try: open(d + '/MARK', 'w').write('x')\n  except OSError: pass",
    ),
    _attack(
        "shared_memory",
        ANY_END,
        "from multiprocessing.shared_memory import SharedMemory\n"
        "SharedMemory('MARK', create=True, size=1000)\nimport os\nos._exit(0)",
    ),
    _attack(
        "spoils_python",
        "ok",
        "import os, json, sys\nfor p in (json.__file__, sys.executable, sys.prefix + '/MARK'):\n"
        "  try: open(p, 'ab'); print('ESCAPED', p)\n  except OSError: pass",
    ),
    _attack(
        "setuid_programs",
        "ok",
        "import subprocess\nr = subprocess.run(['su', '-c', 'id -u'], stdin=subprocess.DEVNULL,"
        " capture_output=True)\nif r.stdout.strip() == b'0': print('ESCAPED')",
    ),
    _attack(
        "device_nodes",
        ("ok", "forbidden"),
        "import os, stat\ntry:\n  os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))\n"
        "  open('disk', 'rb').read(1); print('ESCAPED')\nexcept OSError: pass",
    ),
    _attack(
        "executable_of_parent",
        ANY_END,
        "import os\nopen(f'/proc/{os.getppid()}/exe', 'rb')\nprint('ESCAPED')",
    ),
    _attack(
        "root_of_parent",
        "runtime_error",
        "import os\nos.listdir(f'/proc/{os.getppid()}/root/')\nprint('ESCAPED')",
    ),
]

KERNEL = [
    _attack("chroot", "forbidden", "import os\nos.chroot('.')\nprint('ESCAPED')"),
    _attack(
        "mount",
        "forbidden",
        _CALL + "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    ),
    _attack("unmount", "forbidden", _CALL + "if libc.umount2(b'/tmp', 2) == 0: print('ESCAPED')"),
    _attack(
        "unshare_user", "forbidden", _CALL + "if libc.unshare(0x10000000) == 0: print('ESCAPED')"
    ),
    _attack(
        "clone_into_namespace",
        "forbidden",
        _CALL + "import os\nn = 56 if os.uname().machine == 'x86_64' else 220\n"
        "r = libc.syscall(n, 0x10000011, 0, 0, 0, 0)\nif r >= 0: print('ESCAPED')",
    ),
    _attack(
        "setns",
        "forbidden",
        _CALL + "fd = libc.open(b'/proc/self/ns/net', 0)\n"
        "if libc.setns(fd, 0) == 0: print('ESCAPED')",
    ),
    _attack("reboot", "forbidden", _CALL + "libc.reboot(0x01234567)\nprint('ESCAPED')"),
    _attack(
        "host_name_changed", "forbidden", "import socket\nsocket.sethostname('x')\nprint('ESCAPED')"
    ),
    _attack("clock", "forbidden", "import time\ntime.clock_settime(0, 0)\nprint('ESCAPED')"),
    _attack(
        "becomes_root",
        "ok",
        "import os\nme = os.geteuid()\nfor f in (os.setuid, os.setgid):\n"
        "  try:\n    f(0)\n    if me != 0: print('ESCAPED')\n  except OSError: pass",
    ),
    _attack(
        "raises_limits",
        "ok",
        "import resource\nfor name in ('CPU', 'AS', 'NPROC', 'FSIZE', 'NOFILE', 'CORE'):\n"
        "  kind = getattr(resource, 'RLIMIT_' + name)\n"
        "  try: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2); print('ESCAPED', name)\n"
        "  except (ValueError, OSError): pass",
    ),
    _attack(
        "higher_priority",
        "ok",
        "import os\ntry: os.nice(-5); print('ESCAPED')\nexcept OSError: pass",
    ),
    _attack(
        "spared_by_the_kernel",
        "ok",
        "try:\n  f = open('/proc/self/oom_score_adj', 'w')\n  f.write('-1000'); f.close()\n"
        "  print('ESCAPED')\n"
        "except OSError: pass",
    ),
    _attack(
        "loads_a_module",
        "forbidden",
        _CALL + "import os\nn = 175 if os.uname().machine == 'x86_64' else 105\n"
        "libc.syscall(n, 0, 0, b'')\nprint('ESCAPED')",
    ),
    _attack("kernel_settings", "runtime_error", "open('/proc/sys/kernel/core_pattern', 'w')"),
    _attack(
        "filter_of_its_own",
        ANY_END,
        _CALL + "import socket, struct\nlibc.prctl(38, 1, 0, 0, 0)\n"
        "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n"
        "class F(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]\n"
        "libc.prctl(22, 2, ctypes.byref(F(1, ctypes.addressof(code))), 0, 0)\n"
        "socket.socket(socket.AF_INET)\nprint('ESCAPED')",
    ),
    _attack(
        "other_instruction_set",
        ("forbidden", "runtime_error"),
        "import ctypes, mmap, os\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "if os.uname().machine != 'x86_64': os.abort()\n"
        "m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "f()\nprint('ESCAPED')",
    ),
]

PYTHON = [
    _attack("exits_early", "ok", "import os\nos._exit(0)"),
    _attack("exits_with_a_code", "runtime_error", "import sys\nsys.exit(3)"),
    _attack("raises_base_exception", "runtime_error", "raise BaseException('x')"),
    _attack("raises_interrupt", "runtime_error", "raise KeyboardInterrupt"),
    _attack("exits_late", "timeout", "import atexit, time\natexit.register(time.sleep, 1000)"),
    _attack(
        "finalizer_that_hangs",
        "timeout",
        "import time\nclass A:\n  def __del__(self): time.sleep(1000)\na = A()",
    ),
    _attack(
        "thread_that_outlives",
        "timeout",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
    ),
    _attack(
        "trace_function",
        "timeout",
        "import sys\ndef t(*a):\n  while True: pass\nsys.settrace(t)\n(lambda: 1)()",
    ),
    _attack(
        "reloads_builtins",
        "ok",
        "import builtins, importlib, sys\nbuiltins.print = None\nsys.modules.clear()\n",
    ),
    _attack("null_bytes", "runtime_error", "x = '\0'\nprint('ESCAPED')"),
    _attack("no_text_in_utf_8", "runtime_error", "x = '\udcff'"),
    _attack("strange_output", "ok", "import os\nos.write(1, bytes(range(256)))"),
    _attack("nested_source", ("runtime_error", "memory"), "(" * 10000 + ")" * 10000),
]

ATTACKS = [*RESOURCES, *SIGNALS, *PROCESSES, *NETWORK, *FILES, *KERNEL, *PYTHON]
