"""One minute of proof on a GPU: whether its numbers are right, and how fast it is. The checks hold nothing private, so
that users can show them."""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from vswin_extract.backbone import DTYPES, Backbone, find_device, find_precision
from vswin_extract.checks.devices import compare_on
from vswin_extract.checks.golden import drawn_checkpoint
from vswin_extract.checks.result import Check
from vswin_extract.errors import VswinError, first_line, is_out_of_memory
from vswin_extract.formatting import human_bytes
from vswin_extract.job.versions import detailed_versions
from vswin_extract.network.cuda import attention_table, kernel_problem, window_attention
from vswin_extract.network.swin3d import Size3
from vswin_extract.network.variants import VARIANTS
from vswin_extract.network.windows import window_layout

WINDOW: Size3 = (8, 7, 7)
TOKENS: Size3 = (16, 56, 56)
"""The map of stage 1 for clips of 32 frames of 224 x 224."""
BATCHES = (8, 32)


def examine_gpu() -> Iterator[Check]:
    """Yield the checks of a GPU: versions, golden features of T, both attention kernels against their reference, their
    time, and clips a second of T. Without a GPU there is one check, which fails."""
    try:
        device = find_device("cuda")
    except VswinError as error:
        yield Check("gpu", "failed", str(error), "vswin doctor without --gpu checks the rest of this machine")
        return
    precision = find_precision("auto", device)
    dtype = DTYPES[precision]
    yield Check("versions", "ok", ", ".join(f"{what} {number}" for what, number in detailed_versions()))
    yield Check("gpu", "ok", describe_gpu(device))
    for each in dict.fromkeys(("fp32", precision)):
        yield compare_on("t", device, each)
    for groups in (True, False):
        yield check_kernel(device, dtype, groups)
    yield from measure(device, precision, TOKENS, (32, 224, 224), BATCHES)


def describe_gpu(device: torch.device) -> str:
    found = torch.cuda.get_device_properties(device)
    try:
        compiler = f"Triton {version('triton')}"
    except PackageNotFoundError:
        compiler = "no Triton"
    return f"{found.name}, sm_{found.major}{found.minor}, {human_bytes(found.total_memory)}, {compiler}"


def check_kernel(device: torch.device, dtype: torch.dtype, groups: bool) -> Check:
    """Compare an attention kernel with its reference implementation."""
    what = f"attention by {'groups' if groups else 'tokens'}"
    if problem := kernel_problem(device, dtype, groups):
        return Check(what, "failed", problem, "runs use a slower way that works; please report this")
    return Check(what, "ok", "agrees with its reference implementation")


def measure(
    device: torch.device, precision: str, tokens: Size3, clip: Size3, batches: tuple[int, ...]
) -> Iterator[Check]:
    """Yield the time of attention for a map of `tokens`, and clips a second of T for clips of frames, rows, columns."""
    for shifted in (False, True):
        what = f"attention, {'shifted' if shifted else 'plain'} windows"
        try:
            seconds = attention_seconds(device, DTYPES[precision], tokens, shifted)
            yield Check(what, "ok", f"{1e6 * seconds:.0f} microseconds a clip, stage 1 of T")
        except Exception as error:  # compilers raise many kinds
            yield Check(what, "failed", f"{type(error).__name__}: {first_line(error)}")
    backbone = Backbone("drawn t", drawn_checkpoint(VARIANTS["t"]), device, precision)
    for batch in batches:
        what = f"T in {precision}, batches of {batch}"
        clips = torch.randint(0, 256, (batch, *clip, 3), dtype=torch.uint8).to(device)
        try:
            seconds = median_seconds(lambda clips=clips: backbone(clips), device)  # type: ignore[misc]
        except RuntimeError as error:
            state = "warning" if is_out_of_memory(error) else "failed"
            yield Check(what, state, first_line(error))  # type: ignore[arg-type]
            continue
        yield Check(what, "ok", f"{batch / seconds:.1f} clips/s, {1000 * seconds / batch:.2f} ms a clip, not compiled")
    for note in backbone.notes:
        yield Check("T", "warning", note)


def attention_seconds(device: torch.device, dtype: torch.dtype, tokens: Size3, shifted: bool) -> float:
    """Return the seconds a clip that the attention of a block of stage 1 of T takes."""
    heads, dim, clips = VARIANTS["t"].heads[0], 32, 8
    layout = window_layout(tokens, WINDOW, shifted, device)
    if dtype is torch.float32:
        layout = layout._replace(groups=None)
    qkv = torch.randn(clips, layout.rows.numel(), 3, heads, dim, device=device, dtype=dtype)
    offsets = (2 * WINDOW[0] - 1) * (2 * WINDOW[1] - 1) * (2 * WINDOW[2] - 1)
    table = attention_table(torch.randn(heads, offsets, device=device), WINDOW, layout, dtype)
    return median_seconds(lambda: window_attention(qkv, table, layout), device) / clips


def median_seconds(call: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the median of several calls, after one that is not counted: it compiles kernels."""
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])
