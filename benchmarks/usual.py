"""The usual script: torchvision's `swin3d_*`, clip by clip, after a serial decoder. It can be run by itself:

python -m benchmarks.usual WEIGHTS.pth OUT.h5 STRIDE VIDEO...
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_LEN, FRAME_INTERVAL, SIZE, RESIZE = 32, 2, 224, 256


def torchvision_model(variant: str) -> nn.Module:
    """Return torchvision's module of T, S or B, with random weights of about the size of trained ones."""
    model: nn.Module = getattr(torchvision().models.video, f"swin3d_{variant}")().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            value.normal_(0, 1, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 if "qkv" in name else 1) * value[0].numel() ** -0.5, generator=generator)
        else:
            value.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.05, generator=generator)
    return model


def torchvision() -> Any:
    """Import and return torchvision. Declare first two operators that its wheel misses in a CPU build of PyTorch."""
    try:
        torch.ops.torchvision.nms  # noqa: B018
    except AttributeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.models.video
    import torchvision.transforms._presets

    return torchvision


def embed(model: Any, clips: Tensor) -> Tensor:
    """Return the input of the classifier: what torchvision computes without its last layer."""
    x = model.pos_drop(model.patch_embed(clips))
    x = model.norm(model.features(x))
    return x.mean((1, 2, 3))  # type: ignore[no-any-return]


def main(weights: str, output: str, stride: str, *videos: str) -> None:
    import decord
    import h5py
    import numpy as np

    model = torchvision_model("t")
    model.load_state_dict(torch.load(weights, weights_only=True))
    preset = torchvision().transforms._presets.VideoClassification(
        crop_size=(SIZE, SIZE), resize_size=(RESIZE,), mean=MEAN, std=STD
    )
    with h5py.File(output, "w") as file, torch.inference_mode():
        for number, path in enumerate(videos):
            reader = decord.VideoReader(path)
            span = CLIP_LEN * FRAME_INTERVAL
            rows = []
            for start in range(0, len(reader) - span + 1, int(stride)):
                frames = reader.get_batch(range(start, start + span, FRAME_INTERVAL)).asnumpy()
                clip = preset(torch.from_numpy(frames).permute(0, 3, 1, 2))  # 3 T H W
                rows.append(embed(model, clip[None])[0].numpy())
            file.create_dataset(str(number), data=np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
