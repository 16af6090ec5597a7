"""Programs that try to reach the network, the files, the kernel, or Python's own inside."""

from __future__ import annotations

from tests.reopold.sandbox.attacks import ANY_END, CALL, attack

NETWORK = [
    attack(
        "tcp",
        "forbidden",
        "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nprint('ESCAPED')",
    ),
    attack(
        "tcp_listen",
        "forbidden",
        "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('ESCAPED')",
    ),
    attack(
        "tcp_version_6",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_INET6)\nprint('ESCAPED')",
    ),
    attack(
        "udp",
        "forbidden",
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'x', ('127.0.0.1', 53))\nprint('ESCAPED')",
    ),
    attack(
        "raw_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint('ESCAPED')",
    ),
    attack(
        "packet_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint('ESCAPED')",
    ),
    attack(
        "netlink_socket",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint('ESCAPED')",
    ),
    attack(
        "vsock",
        "forbidden",
        "import socket\nsocket.socket(socket.AF_VSOCK)\nprint('ESCAPED')",
    ),
    attack(
        "host_name",
        ("forbidden", "runtime_error"),
        "import socket\nsocket.getaddrinfo('example.org', 80)\nprint('ESCAPED')",
    ),
    attack(
        "abstract_socket_of_the_machine",
        "runtime_error",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0MARK')\nprint('ESCAPED')",
    ),
    attack(
        "socket_by_old_calls",
        ANY_END,
        CALL + "for n in (41, 198):\n  if libc.syscall(n, 2, 1, 0) >= 3: print('ESCAPED')",
    ),
    attack(
        "ring_instead_of_calls",
        ANY_END,
        CALL + "if libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0: print('ESCAPED')",
    ),
    attack(
        "download",
        "forbidden",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:80')\nprint('ESCAPED')",
    ),
]

FILES = [
    attack(
        "reads_the_repository",
        "runtime_error",
        "open('REPOSITORY/pyproject.toml').read()\nprint('ESCAPED')",
    ),
    attack(
        "reads_the_home",
        "ok",
        "import os\nfor p in ('/root/.bashrc', '/root/.ssh', '/home', '/etc/shadow'):\n"
        "  try:\n    os.listdir(p) if os.path.isdir(p) else open(p).read()\n"
        "    print('ESCAPED', p)\n  except OSError: pass",
    ),
    attack(
        "reads_the_parents_file",
        "runtime_error",
        "open('SECRET_FILE').read()\nprint('ESCAPED')",
    ),
    attack(
        "symlink_to_the_parents_file",
        "runtime_error",
        "import os\nos.symlink('SECRET_FILE', 'link')\nopen('link').read()\nprint('ESCAPED')",
    ),
    attack(
        "overwrites_the_parents_file",
        "runtime_error",
        "open('SECRET_FILE', 'w').write('spoilt')\nprint('ESCAPED')",
    ),
    attack(
        "symlinks_for_the_cleaner",
        "ok",
        "import os\nos.mkdir('d')\nos.symlink('SECRET_FOLDER', 'd/link')\nos.symlink('/', 'all')\n"
        "os.chmod('d', 0)",
    ),
    attack("no_modes_on_home", ANY_END, "import os\nos.mkdir('x')\nos.chmod('.', 0)"),
    attack(
        "removes_home", ANY_END, "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)"
    ),
    attack(
        "deep_folders",
        ANY_END,
        "import os\nfor _ in range(500):\n  os.mkdir('d' * 60)\n  os.chdir('d' * 60)",
    ),
    attack(
        "litter",
        "ok",
        "import os, tempfile\nfor d in ('/tmp', '/var/tmp', '/dev/shm', '/', '/usr', '/program',\n"
        "    os.environ['HOME'], tempfile.gettempdir()):\n"
        "  try: open(d + '/MARK', 'w').write('x')\n  except OSError: pass",
    ),
    attack(
        "shared_memory",
        ANY_END,
        "from multiprocessing.shared_memory import SharedMemory\n"
        "SharedMemory('MARK', create=True, size=1000)\nimport os\nos._exit(0)",
    ),
    attack(
        "spoils_python",
        "ok",
        "import os, json, sys\nfor p in (json.__file__, sys.executable, sys.prefix + '/MARK'):\n"
        "  try: open(p, 'ab'); print('ESCAPED', p)\n  except OSError: pass",
    ),
    attack(
        "writable_mounts",
        "ok",
        "try: lines = open('/proc/self/mounts').read().splitlines()\nexcept OSError: lines = []\n"
        "for line in lines:\n  _, place, _, options, *_ = line.split()\n"
        "  if place not in ('/tmp', '/dev/shm', '/proc') and options.split(',')[0] != 'ro':\n"
        "    print('ESCAPED', line)",
    ),
    attack(
        "setuid_programs",
        "ok",
        "import subprocess\nr = subprocess.run(['su', '-c', 'id -u'], stdin=subprocess.DEVNULL,"
        " capture_output=True)\nif r.stdout.strip() == b'0': print('ESCAPED')",
    ),
    attack(
        "device_nodes",
        ("ok", "forbidden"),
        "import os, stat\ntry:\n  os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))\n"
        "  open('disk', 'rb').read(1); print('ESCAPED')\nexcept OSError: pass",
    ),
    attack(
        "executable_of_parent",
        ANY_END,
        "import os\nopen(f'/proc/{os.getppid()}/exe', 'rb')\nprint('ESCAPED')",
    ),
    attack(
        "root_of_parent",
        "runtime_error",
        "import os\nos.listdir(f'/proc/{os.getppid()}/root/')\nprint('ESCAPED')",
    ),
]

KERNEL = [
    attack("chroot", "forbidden", "import os\nos.chroot('.')\nprint('ESCAPED')"),
    attack(
        "mount",
        "forbidden",
        CALL + "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    ),
    attack("unmount", "forbidden", CALL + "if libc.umount2(b'/tmp', 2) == 0: print('ESCAPED')"),
    attack(
        "unshare_user", "forbidden", CALL + "if libc.unshare(0x10000000) == 0: print('ESCAPED')"
    ),
    attack(
        "clone_into_namespace",
        "forbidden",
        CALL + "import os\nn = 56 if os.uname().machine == 'x86_64' else 220\n"
        "r = libc.syscall(n, 0x10000011, 0, 0, 0, 0)\nif r >= 0: print('ESCAPED')",
    ),
    attack(
        "setns",
        "forbidden",
        CALL + "fd = libc.open(b'/proc/self/ns/net', 0)\n"
        "if libc.setns(fd, 0) == 0: print('ESCAPED')",
    ),
    attack("reboot", "forbidden", CALL + "libc.reboot(0x01234567)\nprint('ESCAPED')"),
    attack(
        "host_name_changed", "forbidden", "import socket\nsocket.sethostname('x')\nprint('ESCAPED')"
    ),
    attack("clock", "forbidden", "import time\ntime.clock_settime(0, 0)\nprint('ESCAPED')"),
    attack(
        "becomes_root",
        "ok",
        "import os\nme = os.geteuid()\nfor f in (os.setuid, os.setgid):\n"
        "  try:\n    f(0)\n    if me != 0: print('ESCAPED')\n  except OSError: pass",
    ),
    attack(
        "raises_limits",
        "ok",
        "import resource\nfor name in ('CPU', 'AS', 'NPROC', 'FSIZE', 'NOFILE', 'CORE'):\n"
        "  kind = getattr(resource, 'RLIMIT_' + name)\n"
        "  try: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2); print('ESCAPED', name)\n"
        "  except (ValueError, OSError): pass",
    ),
    attack(
        "higher_priority",
        "ok",
        "import os\ntry: os.nice(-5); print('ESCAPED')\nexcept OSError: pass",
    ),
    attack(
        "spared_by_the_kernel",
        "ok",
        "try:\n  f = open('/proc/self/oom_score_adj', 'w')\n  f.write('-1000'); f.close()\n"
        "  print('ESCAPED')\n"
        "except OSError: pass",
    ),
    attack(
        "loads_a_module",
        "forbidden",
        CALL + "import os\nn = 175 if os.uname().machine == 'x86_64' else 105\n"
        "libc.syscall(n, 0, 0, b'')\nprint('ESCAPED')",
    ),
    attack("kernel_settings", "runtime_error", "open('/proc/sys/kernel/core_pattern', 'w')"),
    attack(
        "filter_of_its_own",
        ANY_END,
        CALL + "import socket, struct\nlibc.prctl(38, 1, 0, 0, 0)\n"
        "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n"
        "class F(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]\n"
        "libc.prctl(22, 2, ctypes.byref(F(1, ctypes.addressof(code))), 0, 0)\n"
        "socket.socket(socket.AF_INET)\nprint('ESCAPED')",
    ),
    attack(
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
    attack("exits_early", "ok", "import os\nos._exit(0)"),
    attack("exits_with_a_code", "runtime_error", "import sys\nsys.exit(3)"),
    attack("raises_base_exception", "runtime_error", "raise BaseException('x')"),
    attack("raises_interrupt", "runtime_error", "raise KeyboardInterrupt"),
    attack("exits_late", "timeout", "import atexit, time\natexit.register(time.sleep, 1000)"),
    attack(
        "finalizer_that_hangs",
        "timeout",
        "import time\nclass A:\n  def __del__(self): time.sleep(1000)\na = A()",
    ),
    attack(
        "thread_that_outlives",
        "timeout",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
    ),
    attack(
        "trace_function",
        "timeout",
        "import sys\ndef t(*a):\n  while True: pass\nsys.settrace(t)\n(lambda: 1)()",
    ),
    attack(
        "reloads_builtins",
        "ok",
        "import builtins, importlib, sys\nbuiltins.print = None\nsys.modules.clear()\n",
    ),
    attack("null_bytes", "runtime_error", "x = '\0'\nprint('ESCAPED')"),
    attack("no_text_in_utf_8", "runtime_error", "x = '\udcff'"),
    attack("strange_output", "ok", "import os\nos.write(1, bytes(range(256)))"),
    attack("nested_source", ("runtime_error", "memory"), "(" * 10000 + ")" * 10000),
]
