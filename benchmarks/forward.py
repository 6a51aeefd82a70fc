"""The network alone, compared with torchvision's module with the same weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks import usual
from benchmarks.machine import Row, peak, synchronize, take_turns
from vswin_extract import Backbone, Features, load_model
from vswin_extract.network.cpu import has_bf16

GFLOP = {"t": 176.0, "s": 332.0, "b": 564.0}
"""GFLOP per clip of 32 x 224 x 224: twice the published number of multiply-adds."""


def forward(device: torch.device, smoke: bool) -> list[Row]:
    rows: list[Row] = []
    # A CPU without instructions for bf16 emulates it, which would take an hour and prove nothing.
    bf16 = device.type == "cuda" or has_bf16()
    peaks = {dtype: peak(device, dtype) for dtype in (torch.float32, *([torch.bfloat16] if bf16 else []))}
    for variant in ("t",) if smoke else ("t", "s", "b"):
        clips = moving_clip(8 if device.type == "cuda" else 2)
        with TemporaryDirectory() as folder, torch.inference_mode():
            model = usual.torchvision_model(variant)
            torch.save(model.state_dict(), Path(folder) / "weights.pth")
            path = Path(folder) / "weights.pth"
            ours = {
                "fp32": load_model(path, device=str(device), precision="fp32"),
                "auto": load_model(path, device=str(device)),
            }
            model = model.to(device)
            mean, std = (torch.tensor(of_rgb, device=device).view(3, 1, 1, 1) for of_rgb in (usual.MEAN, usual.STD))
            floats = (clips.to(device).permute(0, 4, 1, 2, 3) / 255 - mean) / std

            def theirs(autocast: bool, embed: Callable[..., Tensor], model: nn.Module, floats: Tensor) -> Tensor:
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    embedding: Tensor = embed(model, floats)
                    return embedding.float()

            def mine(backbone: Backbone, clips: Tensor) -> Tensor:
                features: Features = backbone(clips)
                return torch.empty(0) if features.embedding is None else features.embedding

            calls: dict[str, Callable[[], Tensor]] = {
                "torchvision fp32": partial(theirs, False, usual.embed, model, floats),
                **({"torchvision bf16 autocast": partial(theirs, True, usual.embed, model, floats)} if bf16 else {}),
                "ours fp32": partial(mine, ours["fp32"], clips),
                f"ours {ours['auto'].precision} (default)": partial(mine, ours["auto"], clips),
            }
            # compiling takes minutes on a CPU, and the result is slower than ours
            if bf16 and not smoke and (variant == "t" or device.type == "cuda"):
                compiled = torch.compile(usual.embed)
                calls["torchvision bf16 compiled"] = partial(theirs, True, compiled, model, floats)
            exact = calls["torchvision fp32"]().double()
            found = {name: call().double() for name, call in calls.items()}

            def finish(call: Callable[[], Tensor]) -> Callable[[], None]:
                def timed() -> None:
                    call()
                    synchronize(device)

                return timed

            seconds = take_turns({name: finish(call) for name, call in calls.items()}, 3)
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


def moving_clip(count: int) -> Tensor:
    """Return clips of smooth moving colours, (N, 32, 224, 224, 3) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 14, 14, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (32, 224, 224), mode="trilinear", align_corners=False)
    noise = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
