"""The filter on a program's system calls, in classic BPF (seccomp(2), linux/filter.h).

Calls that only an attempt at breaking out makes end the process (SIGSYS). Calls that a library may
make without harm in mind fail with an error: sockets other than AF_UNIX are refused (EACCES), and
what the filter cannot look into is absent (ENOSYS), so that libc takes its older way.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from .kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

_ALLOW = 0x7FFF_0000
_KILL_PROCESS = 0x8000_0000
_ERRNO = 0x0005_0000
_NOTIFY = 0x7FC0_0000
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_LISTENER = 1 << 3
_RECEIVE, _ANSWER = 0xC050_2100, 0xC018_2101  # ioctls of a listener
_X32 = 0x4000_0000
_NEW_NAMESPACES = 0x7E02_0000  # every CLONE_NEW* flag that clone takes

#: name: number on x86_64, on aarch64 (None: it has no such call).
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "clone": (56, 220), "clone3": (435, 435), "delete_module": (176, 106),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioperm": (173, None), "iopl": (172, None), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "semget": (64, 190),
    "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268),
    "settimeofday": (164, 170), "shmget": (29, 194), "socket": (41, 198),
    "socketpair": (53, 199), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    "tgkill": (234, 131), "tkill": (200, 130),
    "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "vhangup": (153, 58),
}  # fmt: skip
#: System V memory outlives its program and no limit counts it; rings and clone3 hide their
#: arguments from a filter.
_ABSENT = (
    "clone3", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl", "add_key",
    "request_key", "msgget", "semget", "shmget", "userfaultfd", "perf_event_open", "vhangup",
)  # fmt: skip
#: Sending a signal: the argument that is held against the program's own number, if any is.
_SIGNALS = {
    "kill": 0, "tgkill": 0, "tkill": None, "rt_sigqueueinfo": None, "rt_tgsigqueueinfo": None,
    "pidfd_send_signal": None,
}  # fmt: skip
_LOOKED_INTO = ("clone", "socket", "socketpair", *_SIGNALS)
_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}

Instruction = tuple[int, int, int, int]
_KILL: Instruction = (_RETURN, 0, 0, _KILL_PROCESS)
_PASS: Instruction = (_RETURN, 0, 0, _ALLOW)


def supported() -> bool:
    """Whether a filter is known for this machine's architecture."""
    return os.uname().machine in _MACHINES


def build(listened: bool, own: int | None) -> list[Instruction]:
    """The filter for this machine.

    Args:
        listened: a listener answers for the network's calls; else the filter itself.
        own: the only process that may be sent signals; None where a PID namespace sees to that.
    """
    column, architecture = _MACHINES[os.uname().machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _KILL,
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _KILL,
    ]
    refuse = _NOTIFY if listened else _ERRNO | errno.EACCES
    rules: dict[str, list[Instruction]] = {
        "socket": [(_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 1, 0, 1), (_RETURN, 0, 0, refuse), _PASS],
        "clone": [(_LOAD, 0, 0, _ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _KILL, _PASS],
    }
    rules["socketpair"] = rules["socket"]
    if own is not None:
        rules |= {name: _signal_rule(name, own) for name in _SIGNALS}
    for name, numbers in _NUMBERS.items():
        number = numbers[column]
        if number is not None and (name in rules or name not in _LOOKED_INTO):
            absent: Instruction = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
            rule = rules.get(name) or [absent if name in _ABSENT else _KILL]
            program += [(_EQUAL, 0, len(rule), number), *rule]
    return [*program, _PASS]


def _signal_rule(name: str, own: int) -> list[Instruction]:
    """Signals to the process itself and to its group (0) alone."""
    denied: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    if _SIGNALS[name] is None:
        return [denied]
    return [(_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 2, 0, own), (_EQUAL, 1, 0, 0), denied, _PASS]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(own: int | None) -> int | None:
    """Filter this process and all that it starts, for good.

    Returns:
        Descriptor of the listener that must answer for the network's calls; None where the kernel
        offers none (before 5.0, or somebody above listens already).

    Raises:
        OSError: the kernel knows no filters.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    try:
        return _set_filter(build(True, own), _NEW_LISTENER)
    except OSError:
        _set_filter(build(False, own), 0)
        return None


def _set_filter(program: list[Instruction], flags: int) -> int:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    return syscall("seccomp", number, 1, flags, ctypes.pointer(_Filter(len(program), code)))


def refuse_one(listener: int) -> None:
    """Answer one waiting call of a filtered process: no."""
    call = bytearray(80)  # struct seccomp_notif
    try:
        fcntl.ioctl(listener, _RECEIVE, call)
        (identity,) = struct.unpack_from("Q", call)
        fcntl.ioctl(listener, _ANSWER, struct.pack("QqiI", identity, 0, -errno.EACCES, 0))
    except FileNotFoundError:  # the caller was killed meanwhile
        return
