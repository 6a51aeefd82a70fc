"""How long it takes until the first features: in a fresh process, and with compiling, cold and from the cache."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.peer import peer_model
from benchmarks.gpu.proof import Section
from vswin_extract.network.variants import VARIANTS

FIRST = """
import sys, time
begun = time.perf_counter()
import torch
weights, device, way, count, t, side = sys.argv[1:]
from vswin_extract import load_model
imported = time.perf_counter()
model = load_model(weights, device=device)
loaded = time.perf_counter()
clips = torch.zeros(int(count), int(t), int(side), int(side), 3, dtype=torch.uint8)
if way == "compiled":
    model.compile_for(clips)
model(clips).embedding.cpu()
print(imported - begun, loaded - imported, time.perf_counter() - loaded, time.perf_counter() - begun)
"""


def startup(section: Section) -> None:
    weights = section.folder / "startup-t.pth"
    torch.save(peer_model(VARIANTS["t"])[0].state_dict(), weights)
    cache = section.folder / "compiled"
    cache.mkdir()
    for what, model, way, seconds in (
        ("nano, kernel compiled anew", "nano", "", 20),
        ("T, not compiled, kernel compiled anew", weights, "anew", 20),
        ("T, not compiled, warm", weights, "", 15),
        ("T, compiled, cold", weights, "compiled", 90),
        ("T, compiled, from the cache", weights, "compiled", 40),
    ):
        if way == "compiled" and section.small:
            section.skip(what, "the network is not compiled on a CPU")
        elif section.allows(what, seconds):
            with section.guarded(what):
                first_features(section, what, str(model), way, cache)


def first_features(section: Section, what: str, weights: str, way: str, cache: Path) -> None:
    shape = ["1", "4", "32"] if section.small else ["8", "32", "224"]
    kernels = cache / ("anew" if way == "anew" else "triton")
    done = subprocess.run(
        [sys.executable, "-c", FIRST, weights, str(section.device), way or "no", *shape],
        env={**os.environ, "TRITON_CACHE_DIR": str(kernels), "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    imported, loaded, first, total = map(float, done.stdout.split())
    row = {"importing, s": imported, "loading, s": loaded, "first features, s": first}
    section.add("start", {"what": what, "seconds": total, **row})
