"""What operating systems do differently: the limits of this machine and of its container, processes, and disks.

Only this module uses what only Linux, glibc or macOS has. Each function works on every POSIX system, and says what it
returns where the system does not tell. It imports the standard library only.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNKNOWN = "?"
"""When a process began, on a system that does not tell."""
MOST_OPEN_FILES = 10240
"""Open files that macOS allows a process although it calls their number unlimited (OPEN_MAX)."""
MFD_CLOEXEC, MFD_NOEXEC_SEAL = 1, 8
"""Flags of memfd_create, of Linux; Python names only the first."""
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems that lack an operation."""


def home_directory() -> Path | None:
    """Return the home directory of this user, which need not exist, or None: a user without an entry in the list of
    users, as in a container that runs by number, has none unless HOME is set."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@contextlib.contextmanager
def some_home() -> Iterator[None]:
    """Set HOME to / while the block runs if this user has no home directory. Some packages cannot be imported without
    one; Docker sets it so, too."""
    if home_directory() is not None:
        yield
        return
    os.environ["HOME"] = "/"
    try:
        yield
    finally:
        del os.environ["HOME"]


def usable_cores() -> int:
    """Return how many cores this process may use; all of them where a process cannot be bound to some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def container_cores() -> float:
    """Return how many cores the container may use, 0 if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(limit) / float(period)  # ValueError for "max 100000", which is no limit
    return 0.0


def processor() -> str:
    """Return the name of the processor, or of its kind."""
    with contextlib.suppress(OSError):
        if match := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()


def memory() -> tuple[int | None, int | None]:
    """Return the available and the total bytes of memory, each None if the system does not tell."""
    total = None
    with contextlib.suppress(OSError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        if match := re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE):
            return int(match[1]) * 1024, total
    return None, total


def container_memory() -> tuple[int, int] | None:
    """Return the bytes of memory that are left to the container, and its limit. None if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), limit
    return None


def shared_memory() -> int | None:
    """Return the free bytes of shared memory; None where there is no directory for it. Linux should have one."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def needs_shared_memory() -> bool:
    """True if programs of this system keep shared memory in /dev/shm."""
    return sys.platform == "linux"


def mounts() -> Iterator[tuple[str, str]]:
    """Yield the directory and the type of each mounted file system; nothing where there is no list of them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
            escaped, kind = line.split()[1:3]
            yield re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), escaped), kind


def has_nvidia_driver() -> bool:
    """True if a driver for NVIDIA GPUs is loaded."""
    return os.path.exists("/proc/driver/nvidia/version")


def limit_memory(size: int) -> None:
    """Let this process have at most so many bytes of address space, where the system can limit it."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):  # ValueError: a lower limit is in force
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def memory_limits() -> dict[str, int]:
    """Return the bytes that this process may have, by the option of ulimit that limits them; {} without limits."""
    limits = {}
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        for option, kind in (("-v", resource.RLIMIT_AS), ("-d", resource.RLIMIT_DATA)):
            if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                limits[f"ulimit {option}"] = soft
    return limits


def require_address_space(needed: int, what: str) -> None:
    """Raise MemoryError if `ulimit -v` leaves this process fewer bytes than `what` needs. Native libraries would end
    the process, or report something else."""
    limit = memory_limits().get("ulimit -v")
    if limit is None:
        return
    used = 0
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    if limit - used < needed:
        left = max(0, limit - used) >> 20
        raise MemoryError(f"{what} needs {needed >> 20} MB of address space, of which {left} MB are left")


def open_files() -> tuple[int | None, int | None]:
    """Return how many files this process may open, and how many it may allow itself. None: any number, or unknown."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, AttributeError):
        return None, None
    return tuple(None if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))  # type: ignore[return-value]


def allow_open_files() -> None:
    """Let this process open as many files as the system allows."""
    soft, hard = open_files()
    if soft is None:
        return
    import resource

    most = resource.RLIM_INFINITY if hard is None else hard
    for limit in (most, MOST_OPEN_FILES):
        if limit == most or limit > soft:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
                return


def keep_freed_memory() -> None:
    """Have glibc keep up to 256 MB of freed memory, in pieces of up to 32 MB. The next clip needs as much again, and
    page faults would take a tenth of a CPU's time. Other C libraries are left as they are."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD


def give_back_freed_memory() -> None:
    """Have glibc give freed memory back to the system, also between pieces that are still used. Other C libraries are
    left as they are."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def started(pid: int) -> str | None:
    """Return when a process of this host began, or None if there is none. It tells two processes with one pid apart.
    UNKNOWN if the process is there, and the system does not tell."""
    if not _exists(pid):
        return None
    state, begun = _look_up(pid)
    if begun == UNKNOWN and not _exists(pid):  # it has just ended
        return None
    return None if state[:1] in ("Z", "X") else begun  # dead, but its parent has not collected it


def is_alive(pid: int, begun: object) -> bool:
    """True if the process with this pid that began then, by `started`, is still there. Where the system does not tell
    when a process began, any process with this pid counts."""
    now = started(pid)
    return now is not None and (now == begun or UNKNOWN in (now, begun))


def process_space() -> tuple[str, str]:
    """Return the boot of this machine's kernel, and the namespace of process ids that this process is in: containers on
    one machine may each have their own. Each is "" where the system does not tell, or has no such thing."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    return boot, space


def uptime() -> float | None:
    """Return for how many seconds this machine's kernel has been running; None if the system does not tell."""
    try:
        return float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _look_up(pid: int) -> tuple[str, str]:
    """Return the state of a process, as Z, and when it began."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return state, fields[18]
    except OSError:
        pass
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):  # without /proc, as on macOS
        found = subprocess.run(
            ["ps", "-o", "state=", "-o", "lstart=", "-p", str(pid)],
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"}, capture_output=True, text=True, timeout=5,
        )  # fmt: skip
        state, *begun = found.stdout.split()
        return state, " ".join(begun)
    return "", UNKNOWN


def flush(descriptor: int) -> None:
    """Have the disk itself store what a file, or the list of names of a directory, contains. A file system that cannot
    do this for a directory stores it in its own time. Raises OSError."""
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS fsync stops at the disk's cache
            with contextlib.suppress(OSError):  # a file system without it
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise


def anonymous_file(name: str, size: int) -> int:
    """Return the descriptor of a new file of this size without a path, full of zeros, for child processes to inherit.
    It is gone once all processes have closed it, however they end. It is in memory (memfd) where the system can do
    that; `name` is shown in /proc then. Elsewhere, as on macOS, it is a deleted file in the directory for temporary
    files. It is never in /dev/shm, which has 64 MB in a container of Docker. Raises OSError."""
    descriptor = _memory_file(name)
    if descriptor is None:
        descriptor, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    try:
        if descriptor < 3:  # in a child, this number would be another file: its standard input or output
            descriptor, low = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3), descriptor
            os.close(low)
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _memory_file(name: str) -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    for flags in (MFD_CLOEXEC | MFD_NOEXEC_SEAL, MFD_CLOEXEC):  # a system may refuse a file that could be executed
        try:
            return os.memfd_create(name, flags)
        except OSError as error:
            if error.errno not in (*NOT_OFFERED, errno.EACCES, errno.EPERM):
                raise
    return None


def reserve(descriptor: int, size: int) -> None:
    """Make a file this long, and take the room for it on the disk, where the file system can. Raises OSError."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    os.ftruncate(descriptor, size)
