"""Whether a GPU is fed: the way of pixels to it, decoding, and complete runs beside the usual script."""

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from benchmarks.decoders import start_decoder
from benchmarks.forward import embedding
from benchmarks.gpu.forward import clips_of
from benchmarks.gpu.peer import peer_model
from benchmarks.gpu.proof import Section
from benchmarks.gpu.timing import seconds_of
from benchmarks.machine import Row
from benchmarks.usual import SPAN
from vswin_extract import extract, load_model
from vswin_extract.feeding.frame_memory import FrameMemory
from vswin_extract.feeding.process import DecodedClip, DecoderProcess
from vswin_extract.network.variants import VARIANTS
from vswin_extract.worker.device import make_device


def feed(section: Section) -> None:
    with section.guarded("copies"):
        copies(section)
    if not has("av"):
        section.skip("end to end", "PyAV is missing, and videos are drawn and decoded by it")
        return
    from benchmarks.videos import draw

    frames = 2 * SPAN if section.small else 10 * SPAN
    (section.folder / "drawn").mkdir()
    video = draw(section.folder / "drawn" / "0.mp4", frames, *((64, 48) if section.small else (640, 360)))
    weights = weights_of_t(section.folder)
    with section.guarded("end to end"):
        end_to_end(section, video, weights)


def has(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def weights_of_t(folder: Path) -> Path:
    path = folder / "feed-t.pth"
    torch.save(peer_model(VARIANTS["t"])[0].state_dict(), path)
    return path


def copies(section: Section) -> None:
    """Measure copies of a batch of pixels to the device, and a batch gathered and copied as a run does it."""
    clips = clips_of(2 if section.small else 16, section.small, 1)
    pages = [clips, clips.clone()]
    ways = {"pageable": pages}
    if section.device.type == "cuda":
        ways["pinned"] = [each.pin_memory() for each in pages]
    for name, each in ways.items():
        calls = [lambda one=one: one.to(section.device, non_blocking=True) for one in each]
        seconds = seconds_of(calls, section.device, 0.5)
        rate = {"GB/s": clips.nbytes / seconds / 1e9, "clips/s": len(clips) / seconds}
        section.add("host to device", {"what": name, **rate})
    device = make_device(section.device, 1)
    memory = FrameMemory(4 * clips.shape[0] * clips.shape[1], math.prod(clips.shape[2:]))
    batches = [in_shared_memory(clips, memory) for _ in range(4)]
    device.load(batches[-1])
    begun, rounds = time.perf_counter(), 3
    for batch in batches[:rounds]:  # frames that the device has not seen
        device.load(batch)
    if section.device.type == "cuda":
        torch.cuda.synchronize(section.device)
    seconds = (time.perf_counter() - begun) / rounds
    device.close()
    rate = {"GB/s": clips.nbytes / seconds / 1e9, "clips/s": len(clips) / seconds}
    section.add("host to device", {"what": "from the memory that decoders share, as a run does it", **rate})


def in_shared_memory(clips: Tensor, memory: FrameMemory) -> list[DecodedClip]:
    """Return clips, (N, T, H, W, 3), as decoder processes give them."""
    _, frames, height, width, channels = clips.shape
    shape = (1, height, width, channels)
    found: list[DecodedClip] = []
    for clip in clips.numpy():
        slots = tuple(memory.take() for _ in clip)
        for slot, pixels in zip(slots, clip, strict=True):
            memory.frames(shape)[slot.number] = pixels
        found.append(DecodedClip(len(found), memory, shape, slots, (0, frames), (0.0, 1.0), frames))
    return found


def end_to_end(section: Section, video: Path, weights: Path) -> None:
    """Time whole runs of T over copies of a video at three overlaps, and the usual script over one of them."""
    small = section.small
    cores = len(os.sched_getaffinity(0))
    folder = section.folder / "videos"
    folder.mkdir()
    copies = 1 if small else 4 * cores
    for number in range(copies):
        shutil.copy(video, folder / f"{number:03}.mp4")
    alone = network_alone(section, weights)
    for overlap in (2,) if small else (2, 1, 4):
        if not section.allows(f"end to end, overlap {overlap}", 25):
            continue
        stride = SPAN // overlap
        usual: Row = {}
        if has("torchvision"):
            script_rate, theirs = usual_rate(section, weights, stride, video)
            usual = {"the usual script, clips/s": script_rate}
        else:
            section.skip("the usual script", "torchvision is missing")
        out = section.folder / f"ours-{overlap}.h5"
        decoding, cpu = decode_rate(section, folder, stride, cores)
        finished = extract(
            folder, out, weights=weights, stride=stride, tail="drop", device=str(section.device),
            size=32 if small else None, resize=32 if small else None, overwrite=True,
        )  # fmt: skip
        seconds = finished.seconds - finished.profile.loaded
        rate = finished.clips / seconds
        section.add(
            "end to end",
            {
                "overlap": overlap,
                "clips": finished.clips,
                "clips/s": rate,
                **usual,
                **({"ratio": rate / script_rate} if usual else {}),
                "decoding alone, clips/s": decoding,
                "network alone, clips/s": alone,
                "of the slower one": rate / min(decoding, alone),
                "busy share of the device": finished.profile.computed / seconds,
                "cores that decoded": finished.profile.decoded / seconds,
                "cores to feed the network": alone * cpu,
                **({"relative L2": distance(theirs, out)} if usual and not small else {}),
            },
        )


def network_alone(section: Section, weights: Path) -> float:
    """Return the clips per second of the network as a run calls it: bf16, or fp32 on a CPU."""
    backbone = load_model(weights, device=str(section.device))
    batch = 1 if section.small else 32
    inputs = [clips_of(batch, section.small, seed).to(section.device) for seed in (1, 2)]
    calls = [partial(embedding, backbone, clips) for clips in inputs]
    return batch / seconds_of(calls, section.device, 1.0, 3)


def decode_rate(section: Section, folder: Path, stride: int, cores: int) -> tuple[float, float]:
    """Decode all videos with a decoder on each core. Return clips per second, and processor seconds a clip."""
    from vswin_extract.feeding.messages import Task, VideoEnd
    from vswin_extract.video.geometry import Geometry
    from vswin_extract.video.sampling import Sampling

    side = 32 if section.small else 224
    geometry = Geometry(side, 32 if section.small else 256)
    sampling = Sampling(32, 2, stride=stride)
    videos = sorted(folder.iterdir())

    def decode(process: DecoderProcess, paths: Sequence[Path]) -> tuple[int, float]:
        clips, cpu = 0, 0.0
        for path in paths:
            process.submit(Task(str(path), "pyav", sampling, geometry))
            while not isinstance(arrived := process.read(), VideoEnd):
                clips += 1
            cpu += arrived.cpu
        return clips, cpu

    processes = [start_decoder(sampling, geometry) for _ in range(cores)]
    try:
        decode(processes[0], videos[:1])
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda process: decode(process, videos[:1]), processes))  # each has started then
            begun = time.perf_counter()
            shares = [videos[number::cores] for number in range(cores)]
            done = list(pool.map(decode, processes, shares))
            seconds = time.perf_counter() - begun
    finally:
        for process in processes:
            process.close()
    clips = sum(count for count, _ in done)
    return clips / seconds, sum(cpu for _, cpu in done) / clips


def usual_rate(section: Section, weights: Path, stride: int, video: Path) -> tuple[float, Path]:
    """Return the clips per second of the usual script after it has loaded its model, and its output."""
    out = section.folder / f"usual-{stride}.h5"
    command = [sys.executable, "-m", "benchmarks.usual", weights, out, stride, section.device, video]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the usual script: {done.stderr[-500:]}")
    with h5py.File(out) as file:
        return len(file["0"]) / float(done.stdout.split()[-1]), out


def distance(theirs: Path, ours: Path) -> float:
    """Return the relative error of our embeddings of the first video."""
    with h5py.File(theirs) as one, h5py.File(ours) as other:
        a = one["0"][:]
        b = other["embedding"][: len(a)]
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))
