"""A file system of the program's own: Python and the system's libraries, read-only, and one
writable folder in memory. Nothing else of the machine is there to be read."""

# Every program waits for these imports; pathlib would take longer than all others together.
from __future__ import annotations

import os

from . import kernel

#: Below /tmp, where the interpreter itself may lie: the folder that a program finds is empty.
HOME = "/tmp/home"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/timezone")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OLD = "/.old"


def enter(python: dict[str, str], files: dict[str, str], uid: int, writable_bytes: int) -> None:
    """Make the private root and move into it; `uid` will own what is writable.

    Needs mount and PID namespaces of its own; call it from a process inside both.

    Args:
        python: folders of the interpreter and its packages, by the path that they are known by.
        files: text by absolute path, written read-only.
        writable_bytes: of all files that the program may hold at once.

    Raises:
        OSError: the kernel refused a step.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    closed = kernel.MS_NOSUID | kernel.MS_NODEV
    # The new root must be a mount: /tmp is everywhere, and is covered for this process alone.
    kernel.mount("tmpfs", "/tmp", "tmpfs", closed, "mode=755")
    os.mkdir("/tmp" + _OLD)
    kernel.pivot_root("/tmp", "/tmp" + _OLD)
    os.chdir("/")
    options = f"mode=700,uid={uid},gid={uid},nr_inodes=4096,size={writable_bytes}"
    for folder in ("/tmp", "/dev/shm"):
        os.makedirs(folder)
        kernel.mount("tmpfs", folder, "tmpfs", closed, options)
    os.mkdir(HOME, 0o700)
    os.chown(HOME, uid, uid)
    _borrow([*SYSTEM, *SETTINGS, *DEVICES, *python.values()])
    for path, folder in python.items():
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(folder, path)
    for path, text in files.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    os.mkdir("/proc")
    kernel.mount("proc", "/proc", "proc", closed | kernel.MS_NOEXEC, "hidepid=2")
    kernel.unmount(_OLD, kernel.MNT_DETACH)
    os.rmdir(_OLD)
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | closed)


def _borrow(paths: list[str]) -> None:
    """Show files and folders of the old root at their places in the new one, read-only."""
    shown: list[str] = []
    for path in paths:
        source = _OLD + path
        inside = any(f"{path}/".startswith(f"{above}/") for above in shown)
        if inside or not os.path.lexists(source):
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.islink(source):
            os.symlink(os.readlink(source), path)
            continue
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        else:
            os.close(os.open(path, os.O_CREAT))
        shown.append(path)
        kernel.mount(source, path, None, kernel.MS_BIND)
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _locked_flags(source)
        kernel.mount("none", path, None, flags)


def _locked_flags(path: str) -> int:
    """Those of a mount that a user namespace may not take off it."""
    held = os.statvfs(path).f_flag
    return held & (kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def remove(folder: str) -> None:
    """Remove a folder whatever a program has made of what is in it: no modes, any depth.

    Inner folders are moved to the top, one level a round, since no path may reach them.
    """
    moved = f"{os.urandom(8).hex()}-{{}}"
    count = 0
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    while names := _names(top):
        for name in names:
            if _unlink(name, top):
                continue
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            for child in _names(inner):
                if not _unlink(child, inner):
                    os.rename(child, moved.format(count), src_dir_fd=inner, dst_dir_fd=top)
                    count += 1
            os.close(inner)
            os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(folder)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _unlink(name: str, folder: int) -> bool:
    """Remove a name; False, and a mode that lets us in, where it is a folder's."""
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):
        os.chmod(name, 0o700, dir_fd=folder)
        return False
    return True
