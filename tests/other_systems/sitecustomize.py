"""Make Python lack what only Linux has, in every process that has this directory on PYTHONPATH. It stands for macOS."""

import builtins
import ctypes
import fcntl
import io
import os
import posix
import resource
import signal
import sys
from types import ModuleType
from typing import Any

LINUX = {
    os: (
        "copy_file_range", "eventfd", "getrandom", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise",
        "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "sendfile", "splice", "O_DIRECT", "O_PATH",
        "O_TMPFILE", "O_NOATIME",
    ),
    fcntl: ("F_GETPIPE_SZ", "F_SETPIPE_SZ", "F_ADD_SEALS", "F_OFD_SETLK"),
    resource: ("RLIMIT_AS", "prlimit"),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo", "SIGRTMIN"),
}  # fmt: skip

for module, names in LINUX.items():
    for name in names:
        for place in (module, posix) if module is os else (module,):
            if hasattr(place, name):
                delattr(place, name)

sys.platform = "darwin"
sys.modules["_scproxy"] = proxies = ModuleType("_scproxy")  # the standard library's own, on macOS
proxies._get_proxies = proxies._get_proxy_settings = dict  # type: ignore[attr-defined]
fcntl.F_FULLFSYNC = 51  # type: ignore[attr-defined]  # no file system here knows it, as some on macOS do not

open_file, open_descriptor, limits = io.open, os.open, resource.getrlimit


def refuse(path: object) -> None:
    if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", os.fspath(path))


def open_without_proc(file: Any, *arguments: Any, **options: Any) -> Any:
    refuse(file)
    return open_file(file, *arguments, **options)


def descriptor_without_proc(path: Any, *arguments: Any, **options: Any) -> int:
    refuse(path)
    return open_descriptor(path, *arguments, **options)


class LibraryWithoutGlibc(ctypes.CDLL):
    def __init__(self, name: str | None, *arguments: Any, **options: Any) -> None:
        if name and os.path.basename(name).startswith("libc.so"):
            raise OSError(f"{name}: image not found")
        super().__init__(name, *arguments, **options)


def limits_without_end(kind: int) -> tuple[int, int]:
    soft, hard = limits(kind)
    return (256, resource.RLIM_INFINITY) if kind == resource.RLIMIT_NOFILE else (soft, hard)


builtins.open = io.open = open_without_proc
os.open = descriptor_without_proc
ctypes.CDLL = LibraryWithoutGlibc  # type: ignore[misc]
resource.getrlimit = limits_without_end
