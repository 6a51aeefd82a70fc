"""`vswin-extract` in processes of its own, whether the package is installed or not."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

EXTRACT = "from vswin_extract.cli.extract import extract; extract()"


def command(arguments: Sequence[object], before: str = "") -> list[str]:
    """Return the command. `before`: Python that it executes first."""
    return [sys.executable, "-c", f"{before}\n{EXTRACT}", *map(str, arguments)]


def run(arguments: Sequence[object], before: str = "", seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(arguments, before), capture_output=True, text=True, timeout=seconds)


def require(done: subprocess.CompletedProcess[str], code: int = 0) -> None:
    """Raise RuntimeError with the end of what a command said if its exit code is another one."""
    if done.returncode != code:
        raise RuntimeError(f"exit {done.returncode} instead of {code}: {done.stderr[-600:]}")


def features(path: Path) -> dict[str, bytes]:
    """Return the bytes of every embedding data set of an output."""
    with h5py.File(path) as file:
        return {"embedding": file["embedding"][:].tobytes()}


def distance(one: Path, other: Path) -> float:
    """Return the relative error of the embeddings of two outputs with the same videos."""
    with h5py.File(one) as first, h5py.File(other) as second:
        a, b = first["embedding"][:], second["embedding"][:]
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else float("nan")
