"""What --version says: everything that decides what a run computes, to be pasted into an issue."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click


def versions() -> Iterator[tuple[str, str]]:
    """Names and versions of this package and of what it stands on. A library that does not load says why."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    yield "vswin-extract", version("vswin-extract")
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package, about in (("torch", _torch), ("h5py", _hdf5), ("av", _ffmpeg), ("decord2", None), ("click", None)):
        try:
            number = version(package)
        except PackageNotFoundError:
            yield package, "not installed"
            continue
        try:
            yield package, number + (f" ({about()})" if about else "")
        except (ImportError, OSError) as error:  # as a library of CUDA that is missing: what an issue must say
            yield package, f"{number} (does not load: {error})"


def _torch() -> str:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{built}; {', '.join(seen) or 'no GPU seen'}"


def _hdf5() -> str:
    import h5py

    return f"HDF5 {h5py.version.hdf5_version}"


def _ffmpeg() -> str:
    import av

    return f"FFmpeg {av.ffmpeg_version_info}"


def _show(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        for name, number in versions():
            click.echo(f"{name} {number}")
        sys.exit(0)


def version_option() -> Callable[[Any], Any]:
    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show,
        help="Show the versions of this tool, Python, torch, HDF5 and the decoders, and exit.",
    )
