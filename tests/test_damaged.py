"""Files that are damaged, joined, cut off or encrypted: what is missing is said, and a sound file is not suspected."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numbered
import numpy as np
import pytest
from conftest import Run, granted_slots

from vswin_extract.errors import VideoDamaged, VideoUnreadable
from vswin_extract.feeding.child import decode_video
from vswin_extract.feeding.messages import Task, VideoEnd
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling

H264 = {"g": "30", "bf": "2", "preset": "medium", "crf": "18"}
KINDS: dict[str, dict[str, Any]] = {
    "mkv": {"options": H264},
    "webm": {"codec": "libvpx-vp9", "options": {"g": "30", "deadline": "realtime"}},
    "avi": {"codec": "mpeg4", "options": {"q": "3", "g": "30"}},
    "flv": {"options": H264},
    "mpg": {"codec": "mpeg2video", "options": {"b": "1M", "g": "15"}},
    "ts": {"options": H264},
    "mxf": {"codec": "mpeg2video", "options": {"b": "1M", "g": "15"}},
    "nut": {"options": H264},
    "mp4": {"options": H264},
    "wmv": {"codec": "wmv2", "options": {"q": "2", "g": "5"}},
}


def decode(path: Path) -> VideoEnd:
    return decode_video(
        Task(os.fspath(path), "pyav", Sampling(1, 1), Geometry(64, 64)), lambda message: None, granted_slots()[1]
    )


def write(path: Path, count: int = 200, **how: Any) -> Path:
    return numbered.write(path, count, rate=30, size=(320, 256), **how)


def overwrite(content: bytes, begin: int, end: int) -> bytes:
    return content[:begin] + np.random.default_rng(0).bytes(end - begin) + content[end:]


@pytest.mark.parametrize("ending", KINDS)
def test_a_hole_in_a_file_makes_it_partial(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"video.{ending}", **KINDS[ending])
    sound = decode(path)
    assert (sound.frames, sound.partial, sound.trouble) == (200, False, "")
    content = path.read_bytes()
    path.write_bytes(overwrite(content, len(content) // 3, 2 * len(content) // 3))
    end = decode(path)
    assert end.frames < 190
    assert end.partial
    assert end.trouble


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_a_piece_that_is_cut_out_makes_a_file_partial(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"video.{ending}", **KINDS[ending])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + content[2 * len(content) // 3 :])
    assert decode(path).partial


@pytest.mark.parametrize("ending", ["mkv", "webm", "avi", "flv", "mxf"])
def test_a_file_that_is_cut_off_is_partial(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"video.{ending}", **KINDS[ending])
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert decode(path).partial


def test_frames_after_a_hole_in_an_avi_file_keep_their_times(tmp_path: Path) -> None:
    """The reader of AVI files counts frames, so all of them would move forward by what is missing."""
    path = write(tmp_path / "video.avi", **KINDS["avi"])
    content = path.read_bytes()
    path.write_bytes(overwrite(content, len(content) // 3, len(content) // 2))
    end = decode(path)
    assert end.frames < 190
    assert end.duration == pytest.approx(200 / 30, abs=0.001)


def test_sound_between_the_frames_is_no_hole(tmp_path: Path) -> None:
    """A pause of the picture, while the sound goes on, is not told from a hole by its time stamps alone."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=H264)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(150):
            if not 60 <= number < 120:
                picture = av.VideoFrame.from_ndarray(numbered.draw(number, 320, 256), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(picture))
            noise = np.random.default_rng(number).integers(-9999, 9999, (1, 266)).astype(np.int16)
            block = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            block.sample_rate, block.pts = 8000, 266 * number
            container.mux(sound.encode(block))
        container.mux(stream.encode())
        container.mux(sound.encode())
    end = decode(path)
    assert (end.frames, end.partial) == (90, False)
    assert "2.0" in end.trouble or "1.9" in end.trouble  # seconds: it is said, because the rate is constant otherwise


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_a_variable_rate_is_sound(tmp_path: Path, ending: str) -> None:
    steps = np.random.default_rng(0).integers(1, 60, 119) * 33
    ticks = [0, *np.cumsum(steps).tolist()]
    path = numbered.write(tmp_path / f"video.{ending}", 120, ticks=ticks, size=(320, 256), options=H264)
    end = decode(path)
    assert (end.frames, end.partial, end.trouble) == (120, False, "")


def test_sound_and_large_frames_of_a_variable_rate_are_sound(tmp_path: Path) -> None:
    """In a transport stream the packets of sound lie inside those of large frames."""
    path = tmp_path / "video.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", options={"crf": "1", "preset": "ultrafast", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        sound = container.add_stream("mp2", rate=48000, layout="mono")
        number = 0
        for count in range(60):
            noise = np.random.default_rng(count).integers(0, 255, (256, 320, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(noise, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(picture))
            for _ in range(3):
                block = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                block.sample_rate, block.pts = 48000, None
                container.mux(sound.encode(block))
            number += 3 if count % 7 == 0 else 1
        container.mux(stream.encode())
        container.mux(sound.encode())
    end = decode(path)
    assert (end.frames, end.partial, end.trouble) == (60, False, "")


def test_alpha_beside_the_frames_is_no_hole(tmp_path: Path) -> None:
    ticks = [0, *np.cumsum(np.random.default_rng(0).integers(1, 9, 59) * 33).tolist()]
    path = numbered.write(
        tmp_path / "video.webm", 60, ticks=ticks, codec="libvpx", pix_fmt="yuva420p", size=(320, 256),
        options={"b": "4M", "auto-alt-ref": "0"},
    )  # fmt: skip
    end = decode(path)
    assert (end.frames, end.partial, end.trouble) == (60, False, "")


def joined(path: Path, one: Path, other: Path) -> Path:
    path.write_bytes(one.read_bytes() + other.read_bytes())
    return path


def test_joined_transport_streams_with_other_pids_are_partial(tmp_path: Path) -> None:
    one = write(tmp_path / "one.ts", options=H264)
    other = write(tmp_path / "other.ts", 400, options=H264, container_options={"mpegts_start_pid": "0x300"})
    end = decode(joined(tmp_path / "joined.ts", one, other))
    assert (end.frames, end.partial) == (200, True)
    assert "6.67 s" in end.trouble


def test_joined_transport_streams_with_the_same_pids_are_read(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{first}.ts", 60, options=H264, first=first) for first in (0, 60))
    end = decode(joined(tmp_path / "joined.ts", one, other))
    assert (end.frames, end.partial) == (120, False)


@pytest.mark.parametrize("ending", ["mp4", "mov", "flv"])
def test_a_second_recording_behind_the_first_is_said(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", 60, options=H264)
    end = decode(joined(tmp_path / f"joined.{ending}", path, path))
    assert (end.frames, end.partial) == (60, True)
    assert "50%" in end.trouble


CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "00112233445566778899aabbccddeeff",
    "encryption_kid": "00112233445566778899aabbccddeeff",
}


@pytest.mark.parametrize("options", [CENC, {**CENC, "movflags": "frag_keyframe+empty_moov"}])
def test_an_encrypted_video_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    path = write(tmp_path / "video.mp4", 60, options=H264, container_options=options)
    with pytest.raises(VideoUnreadable, match="encrypted"):
        decode(path)


def test_a_video_that_is_mostly_damaged_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", codec="mpeg4", options={"q": "3", "g": "5"})
    content = path.read_bytes()
    path.write_bytes(overwrite(content, len(content) // 5, len(content) * 9 // 10))
    with pytest.raises(VideoDamaged, match="of its 200 packets"):
        decode(path)


def unknown_codec(path: Path, before: bytes, after: bytes) -> None:
    """Write a video and replace the name of its codec."""
    content = write(path, 30, options=H264).read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))


@pytest.mark.parametrize(
    ("ending", "before", "after"),
    [("mp4", b"avc1", b"qqqq"), ("mkv", b"V_MPEG4/ISO/AVC", b"V_QQQQQ/QQQ/QQQ"), ("avi", b"H264", b"QQQQ")],
)
def test_an_unknown_codec_is_an_unreadable_video(tmp_path: Path, ending: str, before: bytes, after: bytes) -> None:
    unknown_codec(tmp_path / f"video.{ending}", before, after)
    with pytest.raises(VideoUnreadable, match="codec"):
        decode(tmp_path / f"video.{ending}")


@pytest.mark.parametrize(
    ("options", "transfer", "matrix"),
    [
        ("colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc", "smpte2084", "bt2020nc"),
        ("colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc", "arib-std-b67", "bt2020nc"),
        ("colorprim=bt709:transfer=bt709:colormatrix=bt709", "bt709", "bt709"),
        ("bframes=0", "", ""),
    ],
)
def test_how_colors_are_coded_is_kept(tmp_path: Path, options: str, transfer: str, matrix: str) -> None:
    end = decode(write(tmp_path / "video.mp4", 10, options={"x264-params": options}))
    assert (end.transfer, end.matrix) == (transfer, matrix)


def test_a_run_says_once_that_videos_are_hdr(tmp_path: Path, run: Run, small_weights: Path) -> None:
    """And the columns are in the output. A file of an earlier version, without them, still merges and checks."""
    folder = tmp_path / "videos"
    folder.mkdir()
    hdr = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    for name, options in (("a", hdr), ("b", hdr), ("c", None)):
        numbered.write(folder / f"{name}.mp4", 20, options=options)
    done = run("vswin-extract", folder, tmp_path / "a.h5", "--weights", small_weights)
    assert (done.returncode, done.stderr.count("PQ")) == (0, 1)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["videos_table/transfer"].asstr()[:].tolist() == ["smpte2084", "smpte2084", ""]
        assert file["videos_table/matrix"].asstr()[:].tolist() == ["bt2020nc", "bt2020nc", ""]
    (folder / "c.mp4").rename(tmp_path / "d.mp4")
    assert run("vswin-extract", tmp_path / "d.mp4", tmp_path / "old.h5", "--weights", small_weights).returncode == 0
    with h5py.File(tmp_path / "old.h5", "a") as file:
        del file["videos_table/transfer"], file["videos_table/matrix"], file["videos_table/skipped"]
    assert run("vswin", "check", tmp_path / "old.h5").returncode == 0
    assert run("vswin", "merge", tmp_path / "both.h5", tmp_path / "a.h5", tmp_path / "old.h5").returncode == 0
    with h5py.File(tmp_path / "both.h5") as file:
        assert file["videos_table/transfer"].asstr()[:].tolist() == ["smpte2084", "smpte2084", "", ""]
        assert file["videos_table/skipped"][:].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_mp4_file_that_is_cut_off_behind_its_header_is_partial(tmp_path: Path, share: float) -> None:
    """However little is left: what is there is sound."""
    path = write(tmp_path / "video.mp4", options=H264, container_options={"movflags": "faststart"})
    os.truncate(path, round(path.stat().st_size * share))
    end = decode(path)
    assert 0 < end.frames < 190
    assert end.partial


def test_a_movie_whose_header_is_repeated_is_one_recording(tmp_path: Path) -> None:
    """As segments of DASH and HLS are joined."""
    path = write(
        tmp_path / "video.mp4", 60, options=H264,
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )  # fmt: skip
    content = path.read_bytes()
    first = content.index(b"moof") - 4
    second = content.index(b"moof", first + 8) - 4
    path.write_bytes(content[:second] + content[:first] + content[second:])
    end = decode(path)
    assert (end.frames, end.partial) == (60, False)


def test_damage_before_a_segment_does_not_refuse_it(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", codec="mpeg4", options={"q": "3", "g": "5"})
    content = path.read_bytes()
    path.write_bytes(overwrite(content, len(content) // 20, len(content) // 3))
    assert decode(path).partial
    task = Task(os.fspath(path), "pyav", Sampling(1, 1), Geometry(64, 64), start=3.0, end=3.5)
    assert decode_video(task, lambda message: None, granted_slots()[1]).frames == 15
