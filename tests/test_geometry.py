"""Resize and crop against the numbers of torchvision's video preset, and against PyTorch's interpolation."""

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import fixture

from vswin_extract.errors import UsageError
from vswin_extract.video.geometry import Geometry, Pixels, picture_of
from vswin_extract.weights.recipe import Recipe


def drawn_frames(name: str, shape: tuple[int, int, int]) -> Pixels:
    """Return the frames that the README of the fixture defines."""
    t, h, w = shape
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    coarse = rng.randint(0, 256, (t, 9, 16, 3)).astype(np.float32)
    tt, yy, xx = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    wave = 40 * np.sin(0.9 * xx + 0.31 * yy + tt)[..., None]
    frames: Pixels = np.clip(coarse[tt, yy * 9 // h, xx * 16 // w] * 0.7 + 50 + wave, 0, 255).astype(np.uint8)
    return frames


@pytest.mark.parametrize("name", ["landscape", "fullhd", "portrait", "square", "odd"])
def test_agrees_with_torchvision(name: str) -> None:
    _, values = fixture("preprocess")
    t, h, w = (int(side) for side in values[f"{name}.frames_shape"][:3])
    recipe = Recipe(resize=256)
    frames = [Geometry(224, 256).apply(picture_of(frame))[0] for frame in drawn_frames(name, (t, h, w))]
    normalised = (np.stack(frames) - np.array(recipe.mean, np.float32)) / np.array(recipe.std, np.float32)
    difference = np.abs(
        normalised.transpose(3, 0, 1, 2).ravel()[values[f"{name}.index"]] - values[f"{name}.torchvision"]
    )
    assert difference.max() < 0.018  # one grey level
    assert difference.mean() < 0.0001


@settings(max_examples=60)
@given(st.integers(20, 300), st.integers(20, 300), st.integers(32, 96), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_is_bilinear_interpolation_then_centre_crop(height: int, width: int, size: int, more: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    resize = size + more
    long = resize * max(height, width) // min(height, width)
    shape = (resize, long) if height < width else (long, resize)
    whole = F.interpolate(torch.from_numpy(frame).permute(2, 0, 1)[None].float(), shape, mode="bilinear")
    top, left = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    expected = whole[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()
    (found,) = Geometry(size, resize).apply(picture_of(frame))
    assert found.shape == (size, size, 3)
    assert np.abs(found.astype(np.float32) - expected).max() < 0.501  # the nearest level; half-way, either of two


@pytest.mark.parametrize(("height", "width"), [(64, 151), (151, 64), (64, 64), (90, 91), (48, 200)])
def test_three_crops_reach_from_end_to_end(height: int, width: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    crops = Geometry(64, 64, "three").apply(picture_of(frame))
    assert crops.shape == (3, 64, 64, 3)
    long = 64 * max(height, width) // min(height, width)
    shape = (64, long) if height < width else (long, 64)
    resized = F.interpolate(torch.from_numpy(frame).permute(2, 0, 1)[None].float(), shape, mode="bilinear")
    whole = resized[0].permute(1, 2, 0).numpy()
    middle = (long - 64) // 2
    for crop, at in zip(crops, (0, middle, 2 * middle), strict=True):
        expected = whole[:, at : at + 64] if height < width else whole[at : at + 64]
        assert np.abs(crop.astype(np.float32) - expected).max() < 0.501
    if (long - 64) % 2 == 0:
        assert np.array_equal(crops[1], Geometry(64, 64).apply(picture_of(frame))[0])


def numpy_band(frame: Pixels, geometry: Geometry) -> Pixels:
    """Return the part of the resized frame that the crops lie in, as version 0.1 computed it."""
    sides = frame.shape[:2]
    short = sides.index(min(sides))
    pixels = frame.astype(np.float32)
    for axis, source in enumerate(sides):
        target = geometry.resize if axis == short else geometry.resize * source // min(sides)
        if geometry.crop == "three" and axis != short:
            first, count = 0, target - (target - geometry.size) % 2
        else:
            first, count = round((target - geometry.size) / 2), geometry.size
        at = (np.arange(first, first + count, dtype=np.float32) + 0.5) * np.float32(source / target) - 0.5
        at = np.maximum(at, 0).astype(np.float32)
        low = np.minimum(at.astype(int), source - 1)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (-1, 1)).astype(np.float32)
        pixels = pixels.take(low, axis) * (1 - weight) + pixels.take(np.minimum(low + 1, source - 1), axis) * weight
    return np.rint(pixels).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((64, 151), Geometry(64, 64, "three")),
        ((151, 64), Geometry(64, 64, "three")),
        ((240, 320), Geometry(112, 128, "three")),
        ((90, 91), Geometry(64, 70, "three")),
        ((1080, 1920), Geometry(224, 256, "center")),
        ((320, 180), Geometry(112, 128, "center")),
        ((33, 200), Geometry(96, 96, "center")),
        ((2160, 3840), Geometry(224, 256, "center")),
    ],
)
def test_pixels_are_those_of_version_0_1(shape: tuple[int, int], geometry: Geometry) -> None:
    """Stored features depend on them. Only a value half-way between two grey levels may become either of them."""
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    band, crops = numpy_band(frame, geometry), geometry.apply(picture_of(frame))
    ends = [0, (max(band.shape[:2]) - geometry.size) // 2, max(band.shape[:2]) - geometry.size][: len(crops)]
    for crop, at in zip(crops, ends, strict=True):
        side = slice(at, at + geometry.size)
        expected = band[:, side] if shape[0] < shape[1] else band[side]
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((16, 32), "size"), ((64, 63), "resize"), ((64, 64, "five"), "crop")],
)
def test_sizes_that_cannot_work(arguments: tuple[int, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Geometry(*arguments)
