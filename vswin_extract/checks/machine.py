"""Whether this machine can do the work: every check looks at the real thing, quickly, and says what to do.

Nothing is said of paths but the weights cache's and that of the directory asked about, so that the answers can be
shown to others.
"""

import contextlib
import os
import platform
import re
import resource
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import torch

from vswin_extract import locks
from vswin_extract.backbone import find_device, find_precision
from vswin_extract.checks.weights import Check, compare_variant
from vswin_extract.decoding.decoders import DecoderName
from vswin_extract.decoding.messages import Task
from vswin_extract.decoding.process import DecodedClip, DecoderProcess
from vswin_extract.errors import OutputError, UsageError, VswinError, first_line
from vswin_extract.files import publish
from vswin_extract.journal.directory import claim
from vswin_extract.network.cpu import has_bf16
from vswin_extract.network.variants import VARIANTS
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.weights.cache import cache_dirs, cached_file, writable_cache
from vswin_extract.weights.registry import manifest

NETWORK = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "pvfs2",
    "glusterfs",
)
"""File systems that are shared over a network, beside those by FUSE."""
LITTLE_SPACE = 1e9
LITTLE_MEMORY = 2e9
LITTLE_SHARED = 64e6
FEW_FILES = 1024
FRAMES = 24
"""Frames of the drawn video, at RATE a second."""
RATE = 12


def examine(directory: Path) -> Iterator[Check]:
    """All checks, one after another; `directory` is where outputs are to be written. Raises UsageError where that is
    no directory."""
    if not directory.is_dir():
        raise UsageError(f"no directory {directory}; name the one where the output is to be")
    yield versions()
    yield extras()
    yield cores()
    yield memory()
    yield shared_memory()
    yield open_files()
    yield from devices()
    yield from decoders()
    yield from weights_cache()
    yield from file_system(directory)
    yield from features()


def versions() -> Check:
    found = [f"vswin-extract {version('vswin-extract')}", f"Python {platform.python_version()}"]
    found += [f"torch {torch.__version__}", f"CUDA {torch.version.cuda or 'none'}", f"h5py {h5py.__version__}"]
    found.append(f"HDF5 {h5py.version.hdf5_version}")
    with contextlib.suppress(ImportError):  # which the decoders' check will say
        import av

        libraries = (
            f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat")
        )
        found.append(f"PyAV {av.__version__} (ffmpeg's {', '.join(libraries)})")
    with contextlib.suppress(PackageNotFoundError):
        found.append(f"decord2 {version('decord2')}")
    found.append(f"{platform.system()} {platform.release()} {platform.machine()}")
    return Check("versions", "ok", ", ".join(found))


def extras() -> Check:
    """Which of pyproject's extras are installed whole."""
    wanted: dict[str, list[str]] = {}
    for line in requires("vswin-extract") or ():
        if match := re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line):
            wanted.setdefault(match[2], []).append(match[1])
    wanted.pop("dev", None)
    here = [name for name, packages in wanted.items() if all(_installed(package) for package in packages)]
    lacking = [name for name in wanted if name not in here]
    return Check("extras", "ok", f"{', '.join(here) or 'none'}; not installed: {', '.join(lacking) or 'none'}")


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def cores() -> Check:
    allowed, all_ = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _quota()
    found = f"{allowed} of {all_}" if allowed < all_ else f"{all_}"
    found += f", {quota:g} by the container's quota" if quota else ""
    found += f"; {_processor()}; {'has' if has_bf16() else 'no'} bf16 instructions; {torch.get_num_threads()} threads"
    if quota and torch.get_num_threads() > max(1.0, quota):
        advice = f"set OMP_NUM_THREADS={max(1, int(quota))}: more threads than cores wait for each other"
        return Check("cores", "warning", found, advice)
    return Check("cores", "ok", found)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if match := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()


def _quota() -> float:
    """Cores that the container may use, 0 where it has no such limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(limit) / float(period)  # "max 100000" is none
    return 0.0


def memory() -> Check:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = have
    with contextlib.suppress(OSError):
        if match := re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE):
            free = int(match[1]) * 1024
    found = f"{_gb(free)} of {_gb(have)} available"
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found += f"; {_gb(limit - used)} of the container's {_gb(limit)}"
        free = min(free, limit - used)
    if free < LITTLE_MEMORY:
        return Check("memory", "warning", found, "B and L need 1 to 3 GB; take --workers 1 and --batch-size 1")
    return Check("memory", "ok", found)


def shared_memory() -> Check:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("shared memory", "warning", "no /dev/shm", "PyTorch's DataLoader and Ray need it, extraction not")
    free = shutil.disk_usage(shm).free
    if free < LITTLE_SHARED:
        advice = "PyTorch's DataLoader with workers and Ray need more, extraction not; docker run --shm-size=1g"
        return Check("shared memory", "warning", f"{_gb(free)} free in /dev/shm", advice)
    return Check("shared memory", "ok", f"{_gb(free)} free in /dev/shm")


def open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return Check("open files", "warning", f"at most {said}", f"ulimit -n {min(4096, hard) if hard > 0 else 4096}")
    return Check("open files", "ok", f"at most {said}")


def devices() -> Iterator[Check]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        try:
            about = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            said = first_line(error)
            advice = "look at what nvidia-smi says, and leave it out: --device"
            yield Check(f"device cuda:{index}", "failed", said, advice)
            continue
        found = f"{about.name}, compute capability {about.major}.{about.minor}, {_gb(free)} of {_gb(total)} free"
        precision = find_precision("auto", torch.device("cuda", index))
        yield Check(f"device cuda:{index}", "ok", f"{found}; --precision auto is {precision}")
    if not count and Path("/proc/driver/nvidia/version").exists():
        built = "is built without CUDA" if torch.version.cuda is None else "sees no GPU"
        advice = "install a PyTorch for your CUDA driver, and look at what nvidia-smi says"
        yield Check("device cuda", "warning", f"there is an NVIDIA driver, but this PyTorch {built}", advice)
    yield Check("device cpu", "ok", f"--precision auto is {find_precision('auto', torch.device('cpu'))}")


def decoders() -> Iterator[Check]:
    """Each decoder reads a video that is drawn now, in its own process as in a run."""
    with tempfile.TemporaryDirectory(prefix="vswin-doctor-") as folder:
        path = Path(folder) / "drawn.mp4"
        try:
            draw_video(path)
        except Exception as error:  # whatever a codec library says
            said = f"PyAV cannot write the trial video: {error}"
            yield Check("decoders", "failed", said, "pip install --force-reinstall 'av>=17'")
            return
        for name in get_args(DecoderName):
            advice = f"reinstall it: pip install --force-reinstall {'av' if name == 'pyav' else 'decord2'}"
            try:
                problem = decode(name, path)
            except VswinError as error:
                problem = str(error).replace(folder, "…")
            if problem:
                yield Check(f"decoder {name}", "failed", problem, advice)
            else:
                yield Check(f"decoder {name}", "ok", f"{FRAMES} frames of a drawn MPEG-4 video, their order and times")


def draw_video(path: Path) -> None:
    """FRAMES pictures of 64 x 64, each brighter than the one before, in MPEG-4, which every ffmpeg can write."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            picture = np.full((64, 64, 3), grey(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def grey(number: int) -> int:
    return 20 + 9 * number


def decode(name: str, path: Path) -> str:
    """What is wrong with the frames that a decoder gives of the drawn video, or nothing. Raises VswinError."""
    process = DecoderProcess(name, timeout=30.0)
    try:
        process.submit(Task(str(path), name, Sampling(1, 1), Geometry(32, 32)))
        clips: list[DecodedClip] = []
        while isinstance(arrived := process.read(), DecodedClip):
            clips.append(arrived)
    finally:
        process.close()
    if len(clips) != FRAMES or arrived.frames != FRAMES or arrived.partial:
        return f"{arrived.frames} frames, where {FRAMES} were written{arrived.trouble and '; ' + arrived.trouble}"
    for number, clip in enumerate(clips):
        if max(abs(clip.times[0] - number / RATE), abs(clip.times[1] - (number + 1) / RATE)) > 1e-3:
            return f"frame {number} is shown from {clip.times[0]:.4f} s on, where {number / RATE:.4f} s was written"
        if abs(float(clip.views[0][0].mean()) - grey(number)) > 4:
            return f"frame {number} has grey {float(clip.views[0][0].mean()):.0f}, where {grey(number)} was written"
    return ""


def weights_cache() -> Iterator[Check]:
    """Where it is, and by their sizes whether the files in it are whole: hashing them takes `weights verify`."""
    folders = ", ".join(_home(folder) for folder in cache_dirs())
    here = [row for row in manifest().values() if cached_file(row).is_file()]
    said = f"{folders}: {', '.join(row.name for row in here) or 'empty'}"
    if writable_cache():
        yield Check("weights cache", "ok", said)
    else:
        advice = "what is in it can be used; to pull more, add a directory of your own to VSWIN_WEIGHTS_DIR"
        yield Check("weights cache", "warning", f"{said}; cannot be written", advice)
    for row in here:
        size = cached_file(row).stat().st_size
        if row.megabytes and abs(size / 1e6 - row.megabytes) > 0.02 * row.megabytes:
            found = f"has {size / 1e6:.1f} MB, where about {row.megabytes:g} MB are published"
            advice = f"delete it and pull it again, or look closer: vswin weights verify {row.name}"
            yield Check(f"weights {row.name}", "failed", found, advice)


def file_system(directory: Path) -> Iterator[Check]:
    """Everything that a run does with files, done in a directory of its own in there."""
    kind = file_system_type(directory)
    shared = kind in NETWORK or kind.startswith("fuse.")
    found = f"{kind}{' (over a network, it seems)' if shared else ''}"
    free = shutil.disk_usage(directory).free
    probing = directory / f".vswin-doctor-{uuid.uuid4().hex}"
    try:
        probing.mkdir()
    except OSError as error:
        advice = "name the directory where the output is to be: vswin doctor DIR"
        yield Check("file system", "failed", f"cannot be written: {error.strerror}", advice)
        return
    try:
        for what, attempt, advice in (
            ("journal lock", _try_lock, "keep the journal elsewhere: --storage DIR"),
            ("fsync and rename", _try_publish, "what is finished may not survive a power cut here; use another disk"),
            ("HDF5 locking", _try_hdf5, "set HDF5_USE_FILE_LOCKING=FALSE, or write to another disk and copy the file"),
        ):  # fmt: skip
            try:
                attempt(probing)
            except (OSError, OutputError) as error:
                said = (error.strerror if isinstance(error, OSError) else None) or str(error).replace(str(probing), "…")
                yield Check(what, "failed", f"{said} on {found}", advice)
            else:
                yield Check(what, "ok", f"works on {found}")
    finally:
        shutil.rmtree(probing, ignore_errors=True)
    if free < LITTLE_SPACE:
        advice = "features need 1 to 3 kB a clip, whole maps megabytes; see --pool, or choose another disk"
        yield Check("free space", "warning", f"{_gb(free)}", advice)
    else:
        yield Check("free space", "ok", f"{_gb(free)}")


def _try_lock(folder: Path) -> None:
    """As the journal claims itself, which a second time is refused. Raises OSError, OutputError."""
    with claim(folder / "lock", folder / "out.h5"):
        candidate = folder / "second"
        candidate.touch()
        with contextlib.suppress(FileExistsError):
            locks.create(candidate, folder / "lock")
            raise OutputError("two processes could hold one lock: a file that was there was created again")


def _try_publish(folder: Path) -> None:
    for content in ("before", "after"):
        (folder / "unfinished").write_text(content)
        publish(folder / "unfinished", folder / "published")
        if (folder / "published").read_text() != content:
            raise OutputError("a file that was renamed over another has the content of the other")


def _try_hdf5(folder: Path) -> None:
    with h5py.File(folder / "trial.h5", "w") as file:
        file["numbers"] = np.arange(1000)
    with h5py.File(folder / "trial.h5", "r") as file, h5py.File(folder / "trial.h5", "r"):
        if file["numbers"][:].sum() != 499500:
            raise OutputError("HDF5 read other numbers than it wrote")


def file_system_type(directory: Path) -> str:
    """As mounted: ext4, nfs4, lustre…; "unknown" where the system does not say."""
    here, best, kind = str(directory.resolve()), "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
            mounted, found = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[1]), line.split()[2]
            below = here == mounted or here.startswith(mounted.rstrip("/") + "/")
            if below and len(mounted) >= len(best):  # of two at one place, the later hides the earlier
                best, kind = mounted, found
    return kind


def features() -> Iterator[Check]:
    """The network on the usual device: nano and T with drawn weights, in fp32 and in what --precision auto is there."""
    device = find_device("auto")
    auto = find_precision("auto", device)
    for name, precision in (("nano", "fp32"), ("t", "fp32"), *((("t", auto),) if auto != "fp32" else ())):
        try:
            check = compare_variant(VARIANTS[name], device, precision)
        except (RuntimeError, VswinError) as error:  # whatever a device says
            said = first_line(error)
            check = Check(f"golden features, drawn {name}", "failed", said, "try --device cpu, --precision fp32")
        yield check


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _home(path: Path) -> str:
    """Without the user's name, where that is known."""
    with contextlib.suppress(RuntimeError, ValueError):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)
