"""The usual script: torchvision's `swin3d_*`, clip by clip, with a serial decoder. Run it as:

python -m benchmarks.usual WEIGHTS.pth OUT.h5 STRIDE DEVICE VIDEO...

It prints the seconds that it needed after the model was loaded.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_LEN, FRAME_INTERVAL, SIZE, RESIZE = 32, 2, 224, 256
SPAN = CLIP_LEN * FRAME_INTERVAL
"""Frames of a video that a clip covers."""


def torchvision_model(variant: str) -> nn.Module:
    """Return torchvision's module of T, S or B with weights drawn from a seed, about as large as trained ones."""
    model: nn.Module = getattr(torchvision().models.video, f"swin3d_{variant}")().eval().requires_grad_(False)
    draw_weights(model)
    return model


def draw_weights(model: nn.Module) -> None:
    """Draw all parameters from a seed, about as large as trained ones."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.requires_grad_(False).named_parameters():
        if name.endswith("relative_position_bias_table"):
            value.normal_(0, 1, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 if "qkv" in name else 1) * value[0].numel() ** -0.5, generator=generator)
        else:
            value.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.05, generator=generator)


@cache
def torchvision() -> Any:
    """Return the package torchvision. Where its library does not fit a CPU build of PyTorch, two of its operators must
    be declared first."""
    if not _loads_its_operators():
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.models.video
    import torchvision.transforms._presets

    return torchvision


def _loads_its_operators() -> bool:
    """Load the library of torchvision as it would itself. Return False if that fails."""
    found = find_spec("torchvision")
    libraries = Path(found.origin).parent.glob("_C*.so") if found is not None and found.origin else ()
    for library in libraries:
        with suppress(OSError):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    return hasattr(torch.ops.torchvision, "nms")


def embed(model: Any, clips: Tensor) -> Tensor:
    """Return the input of the classifier: the usual way is to leave out the last layer."""
    x = model.pos_drop(model.patch_embed(clips))
    x = model.norm(model.features(x))
    return x.mean((1, 2, 3))  # type: ignore[no-any-return]


def main(weights: str, output: str, stride: str, device: str, *videos: str) -> None:
    """Write the embeddings of each video to a data set named by its number."""
    import h5py

    model = torchvision_model("t")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model.to(device)
    preset = torchvision().transforms._presets.VideoClassification(
        crop_size=(SIZE, SIZE), resize_size=(RESIZE,), mean=MEAN, std=STD
    )
    begun = time.perf_counter()
    with h5py.File(output, "w") as file, torch.inference_mode():
        for number, path in enumerate(videos):
            span = CLIP_LEN * FRAME_INTERVAL
            rows = []
            for frames in clips_of(path, span, int(stride)):
                clip = preset(torch.from_numpy(frames).permute(0, 3, 1, 2).to(device))  # 3 T H W
                rows.append(embed(model, clip[None])[0].cpu().numpy())
            file.create_dataset(str(number), data=np.stack(rows))
    print(time.perf_counter() - begun)


def clips_of(path: str, span: int, stride: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the clips of a video, each (T, H, W, 3), by decord, or by PyAV where decord is not installed."""
    if find_spec("decord") is not None:
        import decord

        reader = decord.VideoReader(path)
        for start in range(0, len(reader) - span + 1, stride):
            yield reader.get_batch(range(start, start + span, FRAME_INTERVAL)).asnumpy()
        return
    import av

    window: deque[NDArray[np.uint8]] = deque(maxlen=span)
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            window.append(frame.to_ndarray(format="rgb24"))  # type: ignore[arg-type]
            if number + 1 >= span and (number + 1 - span) % stride == 0:
                yield np.stack([window[place] for place in range(0, span, FRAME_INTERVAL)])


if __name__ == "__main__":
    main(*sys.argv[1:])
