"""Checks of this machine. Each does the real thing, quickly, and says what to do if it fails.

The only paths in the results are the one of the weights cache and the name of the file system's type, so that the
results can be shown to others. psutil is not used: it would replace ten of these lines, and it does not know the limits
of a container, which is what matters here.
"""

import contextlib
import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from vswin_extract.checks.decoders import check_decoders
from vswin_extract.checks.devices import check_devices, check_network
from vswin_extract.checks.file_system import check_file_system
from vswin_extract.checks.result import Check
from vswin_extract.checks.weights import check_cache
from vswin_extract.errors import UsageError
from vswin_extract.formatting import human_bytes
from vswin_extract.job.versions import detailed_versions
from vswin_extract.network.cpu import has_bf16

LITTLE_MEMORY = 2e9
"""Free bytes below which there is a warning."""
LITTLE_SHARED_MEMORY = 64e6
"""Free bytes in /dev/shm below which there is a warning."""
FEW_FILES = 1024
"""Open files, if fewer are allowed there is a warning."""


def examine_machine(directory: Path) -> Iterator[Check]:
    """Yield all checks; `directory` is where outputs are to be written. Raises UsageError if it is no directory."""
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}; name the one where the output is to be")
    yield Check("versions", "ok", ", ".join(f"{name} {number}" for name, number in detailed_versions()))
    yield check_extras()
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_open_files()
    yield from check_devices()
    yield from check_decoders()
    yield from check_cache()
    yield from check_file_system(directory)
    yield from check_network()


def check_extras() -> Check:
    """List the optional dependencies of pyproject.toml that are installed completely."""
    packages: dict[str, list[str]] = {}
    for line in requires("vswin-extract") or ():
        if match := re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line):
            packages.setdefault(match[2], []).append(match[1])
    packages.pop("dev", None)
    installed = [extra for extra, names in packages.items() if all(map(_is_installed, names))]
    lacking = [extra for extra in packages if extra not in installed]
    return Check("extras", "ok", f"{', '.join(installed) or 'none'}; not installed: {', '.join(lacking) or 'none'}")


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def check_cores() -> Check:
    """Return how many cores there are, and whether PyTorch uses more threads than the container may."""
    allowed, all_ = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _container_cores()
    threads = torch.get_num_threads()
    found = f"{allowed} of {all_}" if allowed < all_ else f"{all_}"
    found += f", {quota:g} by the container's quota" if quota else ""
    found += f"; {_processor()}; {'has' if has_bf16() else 'no'} bf16 instructions; {threads} threads"
    if quota and threads > max(1.0, quota):
        advice = f"set OMP_NUM_THREADS={max(1, int(quota))}: more threads than cores wait for each other"
        return Check("cores", "warning", found, advice)
    return Check("cores", "ok", found)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if match := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()


def _container_cores() -> float:
    """Return how many cores the container may use, 0 if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(limit) / float(period)  # ValueError for "max 100000", which is no limit
    return 0.0


def check_memory() -> Check:
    """Return how much memory is free, of the machine and of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    with contextlib.suppress(OSError):
        if match := re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE):
            free = int(match[1]) * 1024
    found = f"{human_bytes(free)} of {human_bytes(total)} available"
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found += f"; {human_bytes(limit - used)} of the container's {human_bytes(limit)}"
        free = min(free, limit - used)
    if free < LITTLE_MEMORY:
        advice = "B and L need 1 to 3 GB; use --workers 1 and --batch-size 1"
        return Check("memory", "warning", found, advice)
    return Check("memory", "ok", found)


def check_shared_memory() -> Check:
    """Return how much of /dev/shm is free."""
    folder = Path("/dev/shm")
    needed = "PyTorch's DataLoader with workers and Ray need it; extraction does not"
    if not folder.is_dir():
        return Check("shared memory", "warning", "no /dev/shm", needed)
    free = shutil.disk_usage(folder).free
    found = f"{human_bytes(free)} free in /dev/shm"
    if free < LITTLE_SHARED_MEMORY:
        return Check("shared memory", "warning", found, f"{needed}; more of it: docker run --shm-size=1g")
    return Check("shared memory", "ok", found)


def check_open_files() -> Check:
    """Return how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft:,}"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return Check("open files", "warning", found, f"ulimit -n {min(4096, hard) if hard > 0 else 4096}")
    return Check("open files", "ok", found)
