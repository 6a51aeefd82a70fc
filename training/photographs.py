"""Photographs for scenes: those of scikit-image's wheel and of these Debian packages, under their owners' licences:

    apt-get install lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds openclipart-png \
        plasma-workspace-wallpapers scratch tuxpaint-stamps-default ukui-wallpapers

Landscapes, places, plants and abstract pictures are backgrounds. Stamps are pasted on them: things and animals that are
cut out, a few of them photographed and most of them drawn.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from textures import TRAIN, Source, Texture, between, integer
from torch import Generator, Tensor

Image.MAX_IMAGE_PIXELS = None  # Pillow warns of large pictures even if only their size is read
SHORT_SIDE = 900
STAMP_SIDE = 224
LARGEST_STAMP = 1_000_000
"""Pixels. Some drawings are much larger than their use here needs."""
BACKGROUNDS = ("backgrounds", "wallpapers", "scratch/Media/Backgrounds")
CLIPART = ("animals", "buildings", "containers", "food", "people", "plants", "recreation", "tools", "transportation")
STAMPS = ("tuxpaint/stamps", *(f"openclipart/png/{kind}" for kind in CLIPART))
SYMBOLS = ("alphabets", "math", "operators")
"""Folders of stamps that are letters and digits. They are not used."""


def real_source(root: Path) -> Source:
    """Return the scenes for training: textures, and pictures below `root` (like /usr/share) with stamps on them.

    Raise FileNotFoundError if a package is missing.
    """
    pictures = [picture(path) for folder in BACKGROUNDS for path in files(root / folder)]
    pictures = [pixels for pixels in pictures if pixels.float().std() > 12]  # plain surfaces show no motion
    cut_out = [path for folder in STAMPS for path in files(root / folder) if not set(path.parts) & set(SYMBOLS)]
    stamps = [stamp(path) for path in cut_out if pixel_count(path) < LARGEST_STAMP]
    return Source((*[collage(pixels, stamps) for pixels in pictures], *TRAIN.photos), TRAIN.textures, 0.75)


def files(folder: Path) -> list[Path]:
    """Return the pictures below a folder. Raise FileNotFoundError if there are none."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png") and path.is_file()]
    found = [path for path in found if path.name != "screenshot.png" and path.stat().st_size > 3000]
    found = [path for path in found if not path.is_symlink()]
    if not found:
        raise FileNotFoundError(f"no pictures below {folder}: install the Debian packages that {__name__} names")
    return found


def pixel_count(path: Path) -> int:
    with Image.open(path) as image:  # reads only the header
        return image.width * image.height


def picture(path: Path) -> Tensor:
    """Return a picture (3, height, width) uint8. Its short side is at most SHORT_SIDE."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
        return shrunk(image.convert("RGB"), SHORT_SIDE / min(image.size))


def stamp(path: Path) -> Tensor:
    """Return a stamp (4, height, width) uint8, the last channel opacity. Its long side is at most STAMP_SIDE."""
    with Image.open(path) as image:
        return shrunk(image.convert("RGBA"), STAMP_SIDE / max(image.size))


def shrunk(image: Image.Image, scale: float) -> Tensor:
    """Return the pixels (channels, height, width) uint8 of an image, resized by `scale` if that makes it smaller."""
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, -1)
        .permute(2, 0, 1)
        .contiguous()
    )


def collage(pixels: Tensor, stamps: list[Tensor]) -> Texture:
    """Return a texture: a square piece of a picture, often mirrored, sometimes in other colours, with 0 to 5 stamps."""

    def texture(side: int, generator: Generator) -> Tensor:
        height, width = pixels.shape[1:]
        cut = int(min(height, width) * between((0.35, 1), generator))
        top, left = integer(0, height - cut + 1, generator), integer(0, width - cut + 1, generator)
        piece = pixels[:, top : top + cut, left : left + cut].float() / 255
        if integer(0, 4, generator) == 0:
            piece = piece[torch.randperm(3, generator=generator)]
        canvas = F.interpolate(piece[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
        for _ in range(integer(0, 6, generator)):
            paste(canvas, stamps[integer(0, len(stamps), generator)], generator)
        return canvas.flip(-1) if integer(0, 2, generator) else canvas

    return texture


def paste(canvas: Tensor, thing: Tensor, generator: Generator) -> None:
    """Put a stamp on `canvas` (3, side, side), in place, at random. Its size is a tenth to a half of the canvas."""
    side = canvas.shape[1]
    scale = side * between((0.1, 0.5), generator) / max(thing.shape[1:])
    height, width = (max(1, round(length * scale)) for length in thing.shape[1:])
    rgba = F.interpolate(thing[None].float() / 255, (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = integer(0, side - height + 1, generator), integer(0, side - width + 1, generator)
    spot = canvas[:, top : top + height, left : left + width]
    spot.lerp_(rgba[:3], rgba[3:])
