"""The versions that decide what a run computes: for the output, for `vswin --version` and for `vswin doctor`.

Importing this module needs the standard library only.
"""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("vswin-extract", "torch", "numpy", "av", "decord2", "opencv-python-headless", "h5py")


def installed_versions() -> dict[str, str]:
    """Return the version of Python and of each of PACKAGES that is installed, by name, as an output records them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def detailed_versions() -> Iterator[tuple[str, str]]:
    """Yield the name and version of Python, of PACKAGES and of click, with what they were built with. A library that
    does not load is named with the reason, because a bug report needs it."""
    yield "vswin-extract", version("vswin-extract")
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    details = {"torch": _torch, "h5py": _hdf5, "av": _ffmpeg}
    for package in (*PACKAGES[1:], "click"):
        try:
            number = version(package)
        except PackageNotFoundError:
            yield package, "not installed"
            continue
        try:
            yield package, f"{number} ({details[package]()})" if package in details else number
        except (ImportError, OSError) as error:
            yield package, f"{number} (does not load: {error})"


def _torch() -> str:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{built}; {', '.join(gpus) or 'no GPU seen'}"


def _hdf5() -> str:
    import h5py

    return f"HDF5 {h5py.version.hdf5_version}"


def _ffmpeg() -> str:
    import av

    return f"FFmpeg {av.ffmpeg_version_info}"
