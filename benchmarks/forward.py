"""The network alone, against torchvision's module with the same weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks import usual
from benchmarks.machine import Row, peak, synchronize, take_turns
from vswin_extract import Backbone, load_model
from vswin_extract.network.cpu import has_bf16

GFLOP = {"t": 176.0, "s": 332.0, "b": 564.0}
"""Of a clip of 32 x 224 x 224; twice the published number of multiply-adds."""


def forward(device: torch.device, smoke: bool) -> list[Row]:
    # A CPU without instructions for bf16 emulates it, number by number: that would take an hour and tell nothing.
    bf16 = device.type == "cuda" or has_bf16()
    peaks = {dtype: peak(device, dtype) for dtype in (torch.float32, *([torch.bfloat16] if bf16 else []))}
    rows: list[Row] = []
    for variant in ("t",) if smoke else ("t", "s", "b"):
        clips = moving_clip(8 if device.type == "cuda" else 2)
        # compiling takes minutes on a CPU, and is slower than ours
        compiled = bf16 and not smoke and (variant == "t" or device.type == "cuda")
        with torch.inference_mode():
            calls = candidates(variant, device, clips, bf16, compiled)
            found = {name: call().double() for name, call in calls.items()}
            seconds = take_turns({name: partial(finish, call, device) for name, call in calls.items()}, 3)
        exact = found["torchvision fp32"]
        for name in calls:
            rate = len(clips) / seconds[name]
            dtype = torch.float32 if "fp32" in name else torch.bfloat16
            rows.append(
                {
                    "variant": variant.upper(),
                    "what": name,
                    "clips/s": rate,
                    "x torchvision fp32": seconds["torchvision fp32"] / seconds[name],
                    **({"x torchvision bf16": seconds["torchvision bf16 autocast"] / seconds[name]} if bf16 else {}),
                    "share of peak": rate * GFLOP[variant] * 1e9 / peaks[dtype],
                    "relative L2": float((found[name] - exact).norm() / exact.norm()),
                    "cosine": float(torch.cosine_similarity(found[name], exact).min()),
                }
            )
    return rows


def candidates(
    variant: str, device: torch.device, clips: Tensor, bf16: bool, compiled: bool
) -> dict[str, Callable[[], Tensor]]:
    """Return name -> a call that computes the embeddings of `clips`, all with the same weights."""
    model = usual.torchvision_model(variant)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)
        exact = load_model(path, device=str(device), precision="fp32")
        default = load_model(path, device=str(device))
    model = model.to(device)
    mean, std = (torch.tensor(of_rgb, device=device).view(3, 1, 1, 1) for of_rgb in (usual.MEAN, usual.STD))
    floats = (clips.to(device).permute(0, 4, 1, 2, 3) / 255 - mean) / std

    def theirs(autocast: bool, embed: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return embed(model, floats).float()

    return {
        "torchvision fp32": partial(theirs, False, usual.embed),
        **({"torchvision bf16 autocast": partial(theirs, True, usual.embed)} if bf16 else {}),
        "ours fp32": partial(embedding, exact, clips),
        f"ours {default.precision} (default)": partial(embedding, default, clips),
        **({"torchvision bf16 compiled": partial(theirs, True, torch.compile(usual.embed))} if compiled else {}),
    }


def finish(call: Callable[[], Tensor], device: torch.device) -> None:
    """Call, and wait until the device has computed the result."""
    call()
    synchronize(device)


def embedding(backbone: Backbone, clips: Tensor) -> Tensor:
    found = backbone(clips).embedding
    return torch.empty(0) if found is None else found


def moving_clip(count: int, shape: tuple[int, int, int] = (32, 224, 224), seed: int = 0) -> Tensor:
    """Return clips of smooth colours that move, with noise, (N, T, H, W, 3) uint8. `shape`: T, H, W."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 14, 14, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=False)
    noise = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
