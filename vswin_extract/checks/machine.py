"""Checks of this machine. Each does the real thing, quickly, and says what to do if it fails.

The only paths in the results are the one of the weights cache and the name of the file system's type, so that the
results can be shown to others. psutil is not used: it would replace ten of these lines, and it does not know the limits
of a container, which is what matters here.
"""

import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from vswin_extract import system
from vswin_extract.checks.decoders import check_decoders
from vswin_extract.checks.devices import check_devices, check_network
from vswin_extract.checks.file_system import check_file_system
from vswin_extract.checks.result import Check, CheckState
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
    allowed, all_ = system.usable_cores(), os.cpu_count() or 1
    quota = system.container_cores()
    threads = torch.get_num_threads()
    found = f"{allowed} of {all_}" if allowed < all_ else f"{all_}"
    found += f", {quota:g} by the container's quota" if quota else ""
    found += f"; {system.processor()}; {'has' if has_bf16() else 'no'} bf16 instructions; {threads} threads"
    if quota and threads > max(1.0, quota):
        advice = f"set OMP_NUM_THREADS={max(1, int(quota))}: more threads than cores wait for each other"
        return Check("cores", "warning", found, advice)
    return Check("cores", "ok", found)


def check_memory() -> Check:
    """Return how much memory is free, of the machine and of the container."""
    free, total = system.memory()
    available, in_all = ("an unknown amount" if size is None else human_bytes(size) for size in (free, total))
    found = f"{available} of {in_all} available"
    if limited := system.container_memory():
        left, limit = limited
        found += f"; {human_bytes(left)} of the container's {human_bytes(limit)}"
        free = left if free is None else min(free, left)
    if free is not None and free < LITTLE_MEMORY:
        advice = "B and L need 1 to 3 GB; use --workers 1 and --batch-size 1"
        return Check("memory", "warning", found, advice)
    return Check("memory", "ok", found)


def check_shared_memory() -> Check:
    """Return how much of /dev/shm is free."""
    needed = "PyTorch's DataLoader with workers and Ray need it; extraction does not"
    free = system.shared_memory()
    if free is None:
        state: CheckState = "warning" if system.needs_shared_memory() else "ok"
        return Check("shared memory", state, "no /dev/shm", needed)
    found = f"{human_bytes(free)} free in /dev/shm"
    if free < LITTLE_SHARED_MEMORY:
        return Check("shared memory", "warning", found, f"{needed}; more of it: docker run --shm-size=1g")
    return Check("shared memory", "ok", found)


def check_open_files() -> Check:
    """Return how many files a process may open."""
    soft, hard = system.open_files()
    found = "unlimited" if soft is None else f"at most {soft:,}"
    if soft is not None and soft < FEW_FILES:
        return Check("open files", "warning", found, f"ulimit -n {min(4096, hard or 4096)}")
    return Check("open files", "ok", found)
