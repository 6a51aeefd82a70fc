"""Videos of the kinds that users have, each with its true frames, times and size."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numbered
import numpy as np
from av.stream import Disposition

from vswin_extract.video.geometry import Pixels


@dataclass(frozen=True)
class Truth:
    """The numbers of the frames, in order, the seconds at which they begin, and their width and height when upright."""

    path: Path
    numbers: Sequence[int]
    times: Sequence[float]
    size: tuple[int, int]


Maker = Callable[[Path], Truth]
HARD: dict[str, Maker] = {}


def hard(name: str) -> Callable[[Maker], Maker]:
    def keep(maker: Maker) -> Maker:
        HARD[name] = maker
        return maker

    return keep


def plain(ending: str, count: int = 40, rate: Fraction | int = 25, **how: Any) -> Maker:
    def make(folder: Path) -> Truth:
        path = numbered.write(folder / f"video.{ending}", count, rate=rate, **how)
        size = how.get("size", (96, 64))
        return Truth(path, range(count), [float(i / Fraction(rate)) for i in range(count)], size)

    return make


QUIET = {"log-level": "none"}
HARD |= {
    "h264 with B frames in mp4": plain("mp4", options={"bf": "3", "g": "12", "crf": "12", "preset": "medium"}),
    "h264 in mov": plain("mov"),
    "h264 in avi": plain("avi", options={"bf": "0", "preset": "ultrafast", "crf": "12"}),
    "h264 in ts": plain("ts"),
    "h264 in flv": plain("flv"),
    "h264 10 bit": plain("mkv", pix_fmt="yuv420p10le"),
    "h264 yuv444": plain("mp4", pix_fmt="yuv444p"),
    "h264 full range": plain("mp4", pix_fmt="yuvj420p"),
    "h264 open GOP": plain("mp4", count=90, options={"x264-params": "open-gop=1:keyint=15:bframes=3"}),
    "h264 GOP of 300": plain("mp4", count=330, options={"g": "300", "keyint_min": "300", "sc_threshold": "0"}),
    "h264 interlaced": plain("mp4", size=(128, 128), options={"x264-params": "tff=1", "crf": "8"}),
    "h264 in fragmented mp4": plain("mp4", container_options={"movflags": "frag_keyframe+empty_moov"}),
    "hevc": plain("mp4", codec="libx265", size=(128, 96), options={"x265-params": "log-level=none"}),
    "hevc 10 bit": plain("mkv", codec="libx265", size=(128, 96), pix_fmt="yuv420p10le",
                         options={"x265-params": "log-level=none"}),
    "av1": plain("mp4", codec="libsvtav1", size=(128, 96), count=20, options={"preset": "10", "crf": "20"}),
    "vp8": plain("webm", codec="libvpx", options={"b": "2M"}),
    "vp9": plain("webm", codec="libvpx-vp9", options={"crf": "20", "deadline": "realtime"}),
    "mpeg1 in mpg": plain("mpg", codec="mpeg1video", options={"b": "3M"}),
    "mpeg2 in mpg": plain("mpg", codec="mpeg2video", options={"b": "3M", "bf": "2"}),
    "mpeg2 in ts": plain("ts", codec="mpeg2video", options={"b": "3M", "bf": "2"}),
    "mpeg4 in avi": plain("avi", codec="mpeg4", options={"q": "3"}),
    "mjpeg in avi": plain("avi", codec="mjpeg", pix_fmt="yuvj420p"),
    "prores": plain("mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    "wmv": plain("wmv", codec="wmv2", options={"b": "2M"}),
    "flv1": plain("flv", codec="flv", options={"b": "2M"}),
    "gif": plain("gif", codec="gif", pix_fmt="gray", rate=10),
    "odd sizes": plain("mkv", codec="ffv1", size=(97, 65)),
    "non-square pixels": plain("mp4", aspect=Fraction(4, 3)),
    "4K": plain("mp4", count=4, size=(3840, 2160)),
    "one frame": plain("mp4", count=1),
    "three frames": plain("mp4", count=3),
    "23.976 fps": plain("mkv", rate=Fraction(24000, 1001)),
    "starts late": plain("mkv", ticks=[7000 + 40 * i for i in range(40)]),
    "raw h264": plain("264", format="h264"),
}  # fmt: skip


for degrees in (90, 180, 270):
    for flipped in (False, True):

        @hard(f"rotated by {degrees}" + (" and mirrored" if flipped else ""))
        def _(folder: Path, degrees: int = degrees, flipped: bool = flipped) -> Truth:
            path = numbered.write(folder / "video.mp4", 10, rate=25, size=(128, 96), rotation=degrees, mirrored=flipped)
            return Truth(path, range(10), [i / 25 for i in range(10)], (128, 96))


@hard("mirrored")
def _(folder: Path) -> Truth:
    path = numbered.write(folder / "video.mp4", 10, rate=25, mirrored=True)
    return Truth(path, range(10), [i / 25 for i in range(10)], (96, 64))


@hard("variable frame rate")
def _(folder: Path) -> Truth:
    ticks = [0, 40, 50, 200, 1000, 1010, 1300, 1340, 1500, 1533, 2000, 2600]
    path = numbered.write(folder / "video.mp4", len(ticks), ticks=ticks)
    return Truth(path, range(len(ticks)), [tick / 1000 for tick in ticks], (96, 64))


@hard("edit list")
def _(folder: Path) -> Truth:
    """As `ffmpeg -ss 0.6 -c copy` cuts: from the key frame before, with the frames up to the cut hidden."""
    whole = numbered.write(folder / "whole.mp4", 60, rate=25, options={"g": "10", "bf": "2", "preset": "medium"})
    path = folder / "video.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        cut = round(15 / 25 / (stream.time_base or 1))
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None or packet.pts < round(10 / 25 / (stream.time_base or 1)):
                continue
            packet.pts, packet.dts = packet.pts - cut, packet.dts - cut
            packet.stream = copied
            target.mux(packet)
    return Truth(path, range(15, 60), [i / 25 for i in range(45)], (96, 64))


@hard("two video streams")
def _(folder: Path) -> Truth:
    """A small preview before the video itself, which is the default stream."""
    path = folder / "video.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"crf": "12"}) for _ in range(2)]
        for stream, (width, height) in zip(streams, ((48, 48), (96, 64)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        streams[1].disposition = Disposition.default
        for number in range(20):
            for stream, offset in zip(streams, (1000, 0), strict=True):
                picture = numbered.draw(number + offset, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return Truth(path, range(20), [i / 25 for i in range(20)], (96, 64))


@hard("sound that begins earlier and lasts longer")
def _(folder: Path) -> Truth:
    path = folder / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("aac", rate=8000)
        for block in range(12):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * block
            container.mux(sound.encode(frame))
        for number in range(20):
            picture = av.VideoFrame.from_ndarray(numbered.draw(number, 96, 64), format="rgb24")
            picture.pts, picture.time_base = number + 5, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        container.mux(sound.encode())
    return Truth(path, range(20), [i / 25 for i in range(20)], (96, 64))


@hard("resolution change midway")
def _(folder: Path) -> Truth:
    """One stream whose second half is encoded at another size, as broadcasts do it."""
    path = folder / "video.ts"
    headers = {"x264-params": "repeat-headers=1:bframes=0", "crf": "12", "preset": "ultrafast"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=headers)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        second = av.CodecContext.create("libx264", "w")
        second.width, second.height, second.pix_fmt = 128, 128, "yuv420p"
        second.time_base, second.framerate, second.options = Fraction(1, 25), Fraction(25), headers
        for encoder, numbers in ((stream, range(20)), (second, range(20, 40))):
            packets = []
            for number in numbers:
                size = (96, 64) if number < 20 else (128, 128)
                frame = av.VideoFrame.from_ndarray(numbered.draw(number, *size), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    return Truth(path, range(40), [i / 25 for i in range(40)], (96, 64))


def read_all(pictures: Sequence[Pixels]) -> list[int]:
    return [numbered.read(picture) for picture in pictures]


def _without_moov(path: Path) -> None:
    content = numbered.write(path.with_name("whole.mp4"), 40).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])


def _header_only(path: Path) -> None:
    path.write_bytes(numbered.write(path.with_name("whole.mkv"), 40).read_bytes()[:300])


def _sound_only(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        for block in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * block
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        if picture is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered.draw(0, 64, 64), format="rgb24")))
            container.mux(picture.encode())


def _image(path: Path) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered.draw(0, 64, 64), format="rgb24")))
        container.mux(stream.encode())


BROKEN: dict[str, Callable[[Path], object]] = {
    "nothing in it": lambda path: path.touch(),
    "text": lambda path: path.write_text("hello\n" * 1000),
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)),
    "no moov": _without_moov,
    "header only": _header_only,
    "sound only": _sound_only,
    "sound and cover art": lambda path: _sound_only(path, cover=True),
    "an image": _image,
    "a directory": lambda path: path.mkdir(),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a FIFO": lambda path: os.mkfifo(path),
    "a playlist": lambda path: path.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{numbered.write(path.with_name('a.ts'), 9)}\n#EXT-X-ENDLIST\n"
    ),
    "a concat script": lambda path: path.write_text(
        f"ffconcat version 1.0\nfile {numbered.write(path.with_name('a.mp4'), 9)}\n"
    ),
}
"""Files that are no videos but have the name of one: functions that make them at a path."""
