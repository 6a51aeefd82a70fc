"""Check of the devices, and of what the network computes on the usual one."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from vswin_extract.backbone import find_device, find_precision
from vswin_extract.checks.golden_features import compare_variant
from vswin_extract.checks.result import Check
from vswin_extract.errors import VswinError, first_line
from vswin_extract.formatting import human_bytes
from vswin_extract.network.inference import UNMEASURED
from vswin_extract.network.variants import VARIANTS
from vswin_extract.system import has_nvidia_driver


def check_devices() -> Iterator[Check]:
    """Yield a check for each CUDA device, one for mps if there is one, and one for the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        what = f"device cuda:{index}"
        try:
            device = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            advice = "see what nvidia-smi says, and use other devices: --device"
            yield Check(what, "failed", first_line(error), advice)
            continue
        memory = f"{human_bytes(free)} of {human_bytes(total)} free"
        found = f"{device.name}, compute capability {device.major}.{device.minor}, {memory}"
        precision = find_precision("auto", torch.device("cuda", index))
        yield Check(what, "ok", f"{found}; --precision auto is {precision}")
    if not count and has_nvidia_driver():
        reason = "is built without CUDA" if torch.version.cuda is None else "sees no GPU"
        advice = "install a PyTorch for your CUDA driver, and see what nvidia-smi says"
        yield Check("device cuda", "warning", f"there is an NVIDIA driver, but this PyTorch {reason}", advice)
    if torch.backends.mps.is_available():
        yield Check("device mps", "ok", f"--precision auto is fp32; {UNMEASURED}; --device auto does not choose it")
    yield Check("device cpu", "ok", f"--precision auto is {find_precision('auto', torch.device('cpu'))}")


def check_network() -> Iterator[Check]:
    """Yield the golden features of nano and T with drawn weights on the usual device, in fp32 and, if it is another
    one, of T in the precision that --precision auto means there; then those of mps, if there is one, in fp32."""
    device = find_device("auto")
    auto = find_precision("auto", device)
    for name, precision in (("nano", "fp32"), ("t", "fp32"), *((("t", auto),) if auto != "fp32" else ())):
        yield compare_on(name, device, precision)
    if torch.backends.mps.is_available():
        for name in ("nano", "t"):
            check = compare_on(name, torch.device("mps"), "fp32")
            yield replace(check, what=f"{check.what} on mps")


def compare_on(name: str, device: torch.device, precision: str) -> Check:
    """Return the check of the golden features of a variant with drawn weights."""
    try:
        return compare_variant(VARIANTS[name], device, precision)
    except (RuntimeError, TypeError, VswinError) as error:  # drivers raise RuntimeError; TypeError: no float64 on mps
        advice = "try --device cpu, --precision fp32"
        return Check(f"golden features, drawn {name}", "failed", first_line(error), advice)
