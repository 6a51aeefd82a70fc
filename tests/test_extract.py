"""`vswin-extract` from the command line: the contents of the file, resuming, failures, wrong usage."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import h5py
import numbered
import numpy as np
import pytest
import torch
from conftest import ROOT, Run, script

import vswin_extract
from vswin_extract import open_features
from vswin_extract.backbone import Backbone, find_precision
from vswin_extract.checks.output import verify_output
from vswin_extract.cli.signals import CLEANUP, Interrupted, StopSignals
from vswin_extract.job.events import Finished, Notice, Profile
from vswin_extract.network.variants import VARIANTS
from vswin_extract.video.geometry import Geometry, picture_of
from vswin_extract.video.sampling import Sampling

EXAMPLES = ROOT / "examples" / "videos"

NANO = VARIANTS["nano"]
MANY = 16


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 50, 33 and 7 frames. Two have the same file name."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub dir").mkdir()
    numbered.write(folder / "a.mp4", 50)
    numbered.write(folder / "sub dir" / "a.mp4", 33, rate=25, first=100)
    numbered.write(folder / "short.webm", 7, rate=10, codec="libvpx", first=200)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MANY videos of 40 frames and more."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        numbered.write(folder / f"{number:02}.mp4", 40 + number, first=10 * number)
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 2500 frames."""
    return numbered.write(tmp_path_factory.mktemp("long") / "long.mp4", 2500)


@pytest.fixture(scope="module")
def plain(run: Run, videos: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with all features."""
    out = tmp_path_factory.mktemp("plain") / "out.h5"
    done = run(
        "vswin-extract", videos, out, "--weights", small_weights, "--stride", 8, "--logits",
        *[word for stage in (4, 1, 2, 3) for word in ("--stage", stage)],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_schema_with_plain_h5py(plain: Path, videos: Path, small_weights: Path) -> None:
    sampling = Sampling(8, 2, 8)
    counts = [sampling.count(n) for n in (50, 7, 33)]
    total = sum(counts)
    with h5py.File(plain, "r") as file:
        assert file.attrs["schema"] == "vswin-extract/1"
        assert bool(file.attrs["complete"])
        assert file.attrs["model"] == small_weights.name
        assert len(file.attrs["weights_sha256"]) == 64
        assert file.attrs["precision"] == find_precision("auto", torch.device("cpu"))
        assert json.loads(file.attrs["sampling"]) == {
            "clip_len": 8, "frame_interval": 2, "stride": 8, "fps": None, "align": "start", "tail": "pad",
        }  # fmt: skip
        assert json.loads(file.attrs["preprocessing"])["size"] == 32
        assert json.loads(file.attrs["variant"])["window"] == list(NANO.window)
        assert json.loads(file.attrs["versions"])["torch"] == torch.__version__
        shapes = {
            "embedding": (NANO.channels(4),),
            "logits": (3,),
            "stage1": (4, 8, 8, NANO.channels(1)),
            "stage2": (4, 4, 4, NANO.channels(2)),
            "stage3": (4, 2, 2, NANO.channels(3)),
            "stage4": (4, 1, 1, NANO.channels(4)),
        }
        for name, shape in shapes.items():
            assert file[name].shape == (total, *shape)
            assert file[name].dtype == np.float32
            assert np.isfinite(file[name][:]).all()
        assert np.allclose(file["embedding"][:], file["stage4"][:].mean((1, 2, 3)), atol=1e-6)
        assert file["classes"].asstr()[:].tolist() == ["one", "two", "three"]

        table = file["videos_table"]
        assert table["id"].asstr()[:].tolist() == ["a.mp4", "short.webm", "sub dir/a.mp4"]
        assert table["clips"][:].tolist() == counts
        assert table["first_clip"][:].tolist() == [0, counts[0], counts[0] + counts[1]]
        assert table["frames"][:].tolist() == [50, 7, 33]
        assert table["fps"][:].tolist() == pytest.approx([30, 10, 25])
        assert table["duration"][:].tolist() == pytest.approx([50 / 30, 0.7, 33 / 25], abs=1e-3)
        assert table["width"][:].tolist() == [96] * 3
        assert table["status"].asstr()[:].tolist() == ["ok"] * 3
        assert table["size"][0] == (videos / "a.mp4").stat().st_size
        assert len(file["failures/id"]) == 0

        assert file["clips/video"][:].tolist() == [0] * counts[0] + [1] * counts[1] + [2] * counts[2]
        for row, (name, n, rate) in enumerate((("a.mp4", 50, 30), ("short.webm", 7, 10), ("sub dir/a.mp4", 33, 25))):
            group, first = file["videos"][name], table["first_clip"][row]
            for column in (*shapes, "frames", "times", "valid"):
                whole = file[column if column in shapes else f"clips/{column}"]
                assert np.array_equal(group[column][:], whole[first : first + counts[row]])
            expected = [sampling.clip(k, n) for k in range(counts[row])]
            assert group["frames"][:].tolist() == [[clip.first, clip.end] for clip in expected]
            assert group["valid"][:].tolist() == [clip.valid for clip in expected]
            assert np.allclose(group["times"][:] * rate, group["frames"][:], atol=0.02)
            assert group.attrs["fps"] == pytest.approx(rate)
        assert not list(plain.parent.glob("*.parts"))


def test_features_are_those_of_the_model_on_those_frames(plain: Path, small_weights: Path) -> None:
    """Compare with features of the drawn frames. Decoded frames differ from them by the loss of the codec."""
    model = vswin_extract.load_model(str(small_weights), device="cpu")
    geometry = Geometry(32, 32)
    with open_features(plain) as features:
        for name, first, n in (("a.mp4", 0, 50), ("sub dir/a.mp4", 100, 33), ("short.webm", 200, 7)):
            for k in range(len(features[name])):
                positions = Sampling(8, 2, 8).clip(k, n).positions
                frames = [geometry.apply(picture_of(numbered.draw(first + p, 96, 64)))[0] for p in positions]
                expected = model(torch.from_numpy(np.stack(frames))[None]).embedding
                assert expected is not None
                found = torch.from_numpy(features[name].embedding[k])
                assert torch.cosine_similarity(found, expected[0], 0) > 0.995


def test_reading_lazily(plain: Path) -> None:
    with open_features(plain) as features:
        assert list(features) == ["a.mp4", "short.webm", "sub dir/a.mp4"]
        assert features.info["sampling"]["stride"] == 8
        video = features["sub dir/a.mp4"]
        whole = np.asarray(video.stage4)
        assert whole.shape == video.stage4.shape == (len(video), 4, 1, 1, NANO.channels(4))
        assert np.array_equal(video.stage4[0], whole[0])
        assert np.array_equal(video.stage4[-1], whole[-1])
        assert np.array_equal(video.stage4[1:3, 2], whole[1:3, 2])
        assert np.array_equal(video.stage4[::-1], whole[::-1])
        assert np.array_equal(video.stage4[[2, 0]], whole[[2, 0]])
        assert video.times[0].tolist() == [0.0, pytest.approx(16 / 25)]
        assert video.info["fps"] == 25
        with pytest.raises(IndexError):
            video.stage4[len(video)]
        with pytest.raises(AttributeError, match="has no stage5; it has embedding"):
            _ = video.stage5
        with pytest.raises(KeyError):
            features["nope"]


def test_open_features_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, says in (("text.h5", "not an HDF5 file"), ("other.h5", "not written by"), ("no.h5", "no such file")):
        with pytest.raises(vswin_extract.VswinError, match=says):
            open_features(tmp_path / name)


def embeddings(path: Path, name: str = "embedding") -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    with h5py.File(path, "r") as file:
        return file[name][:]  # type: ignore[no-any-return]


SMALL = ["--size", "64", "--clip-len", "8"]


@pytest.mark.parametrize(
    ("precision", "size"),
    [("fp32", SMALL), pytest.param("bf16", SMALL, marks=pytest.mark.slow),
     pytest.param("fp32", [], marks=pytest.mark.slow), pytest.param("bf16", [], marks=pytest.mark.slow)],
)  # fmt: skip
def test_two_runs_give_identical_bytes_and_batches_do_not_matter(
    shell: Run, run: Run, tmp_path: Path, precision: str, size: list[str]
) -> None:
    """With the bundled weights on an example video, or on all. On a CPU each clip is computed by itself, so the bounds
    hold in reduced precision too."""
    videos = [EXAMPLES / "shapes.mkv"] if size else [EXAMPLES]
    outputs = []
    for name, call, batch in (("one", shell, []), ("two", run, []), ("b1", run, [1]), ("b8", run, [8])):
        outputs.append(tmp_path / f"{name}.h5")
        options = ["--stage", 4, "-q", "--precision", precision, *size, *(["--batch-size", *batch] if batch else [])]
        done = call("vswin-extract", *videos, outputs[-1], *options)
        assert done.returncode == 0, done.stderr
    for dataset in ("embedding", "stage4"):
        one, two, batch1, batch8 = (embeddings(path, dataset) for path in outputs)
        assert one.tobytes() == two.tobytes()
        assert np.linalg.norm(batch1 - batch8) <= 1e-6 * np.linalg.norm(batch1)
        assert np.linalg.norm(one - batch8) <= 1e-6 * np.linalg.norm(one)


@pytest.mark.slow
def test_decoder_processes_do_not_matter(run: Run, many: Path, small_weights: Path, tmp_path: Path) -> None:
    for name, count in (("a.h5", 1), ("b.h5", 3), ("c.h5", 3)):
        done = run("vswin-extract", many, tmp_path / name, "--weights", small_weights, "--workers", count)
        assert done.returncode == 0, done.stderr
    one, other, again = (embeddings(tmp_path / f"{name}.h5") for name in "abc")
    assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(one)
    assert other.tobytes() == again.tobytes()


def finished_parts(out: Path) -> dict[str, float]:
    """Return the entry files of finished videos in the journal, each with its time."""
    return {path.name: path.stat().st_mtime_ns for path in out.with_name(out.name + ".parts").glob("shard-*/*.json")}


def kill_in_the_middle(command: list[str], environment: dict[str, str], out: Path, more: int) -> None:
    """Start the command, and kill it with SIGKILL when this many more videos are finished."""
    before = len(finished_parts(out))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(finished_parts(out)) < before + more and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(
    run: Run, environment: dict[str, str], many: Path, small_weights: Path, tmp_path: Path
) -> None:
    arguments = [str(many), "--weights", str(small_weights), "--stage", "4", "--stride", "6", "--batch-size", "3"]
    whole, out = tmp_path / "whole.h5", tmp_path / "out.h5"
    assert run("vswin-extract", *arguments[:1], whole, *arguments[1:]).returncode == 0
    done: dict[str, float] = {}
    for more in (1, 5):
        kill_in_the_middle([script("vswin-extract"), arguments[0], str(out), *arguments[1:]], environment, out, more)
        assert not out.exists()
        now = finished_parts(out)
        assert done.items() <= now.items()  # finished videos are not computed again
        assert len(now) > len(done)
        done = now
    early = run("vswin", "merge", out)
    assert (early.returncode, "--allow-missing" in early.stderr) == (2, True)
    last = run("vswin-extract", arguments[0], out, *arguments[1:])
    assert last.returncode == 0, last.stderr
    assert f"{MANY} videos, {len(done)} of them done before" in last.stderr
    assert not out.with_name("out.h5.parts").exists()
    with open_features(whole) as expected, open_features(out) as found:
        assert list(found) == list(expected)
        for name in expected:
            assert np.array_equal(found[name].frames[:], expected[name].frames[:])
            assert np.array_equal(found[name].times[:], expected[name].times[:])
            for dataset in ("embedding", "stage4"):
                a, b = np.asarray(getattr(expected[name], dataset)), np.asarray(getattr(found[name], dataset))
                assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)


def interrupted(run: Run, environment: dict[str, str], many: Path, weights: Path, out: Path) -> None:
    kill_in_the_middle([script("vswin-extract"), str(many), str(out), "--weights", str(weights)], environment, out, 3)


@pytest.mark.slow
def test_resuming_with_other_settings_is_refused(
    run: Run, environment: dict[str, str], many: Path, small_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    interrupted(run, environment, many, small_weights, out)
    other = run("vswin-extract", many, out, "--weights", small_weights, "--stride", 4)
    assert other.returncode == 2
    assert "sampling.stride was 16, is 4" in other.stderr
    other = run("vswin-extract", many, out)
    assert other.returncode == 2
    assert "weights_sha256 was" in other.stderr
    dropped = run("vswin-extract", many, out, "--weights", small_weights, "--stride", 20, "--overwrite")
    assert dropped.returncode == 0, dropped.stderr
    with open_features(out) as features:
        assert features.info["sampling"]["stride"] == 20


@pytest.mark.slow
def test_a_changed_video_is_extracted_again(
    run: Run, environment: dict[str, str], many: Path, small_weights: Path, tmp_path: Path
) -> None:
    out, copy = tmp_path / "out.h5", tmp_path / "videos"
    copy.mkdir()
    for path in many.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    interrupted(run, environment, copy, small_weights, out)
    numbered.write(copy / "00.mp4", 100)
    assert run("vswin-extract", copy, out, "--weights", small_weights).returncode == 0
    with open_features(out) as features:
        assert features["00.mp4"].info["frames"] == 100


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_lets_videos_in_flight_finish(
    run: Run,
    environment: dict[str, str],
    many: Path,
    small_weights: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "out.h5"
    process = subprocess.Popen(
        [script("vswin-extract"), str(many), str(out), "--weights", str(small_weights), "--stride", "2"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(finished_parts(out)) < 3:
        time.sleep(0.002)
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == code
    assert "finishing the videos in flight" in printed
    assert "the same command continues" in printed
    assert "Traceback" not in printed
    assert not list(out.with_name("out.h5.parts").rglob("*.tmp"))
    assert not out.with_name("out.h5.parts").joinpath("lock").exists()
    found = verify_output(out)
    assert not found.finished
    assert 3 <= found.videos < MANY
    assert found.problems == ()
    if number == signal.SIGINT:
        assert run("vswin-extract", many, out, "--weights", small_weights, "--stride", 2).returncode == 0


def test_names_with_colons_are_printed_unchanged(run: Run, tmp_path: Path) -> None:
    (tmp_path / ":tv:.mp4").write_text("no video")
    done = run("vswin-extract", tmp_path / ":tv:.mp4", tmp_path / "out.h5")
    assert "failed: :tv:.mp4: VideoUnreadable" in done.stderr
    assert ":tv:.mp4" in run("vswin", "inspect", tmp_path / "out.h5").stdout


@pytest.mark.parametrize("grace", [pytest.param("20", marks=pytest.mark.slow), "0"])
def test_a_second_signal_or_the_end_of_grace_stops_at_once(
    environment: dict[str, str], small_weights: Path, long: Path, tmp_path: Path, grace: str
) -> None:
    path = long
    out = tmp_path / "out.h5"
    command = [script("vswin-extract"), str(path), str(out), "--weights", str(small_weights), "--stride", "1"]
    process = subprocess.Popen([*command, "--grace", grace], env=environment, stderr=subprocess.PIPE, text=True)
    while not list(out.with_name("out.h5.parts").glob("shard-*/*.rows.tmp")):
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    if grace == "20":
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    assert time.monotonic() - begun < CLEANUP + 5
    assert "Traceback" not in printed
    assert not out.with_name("out.h5.parts").exists()  # no video was finished


def test_a_cleanup_that_waits_for_ever_is_interrupted() -> None:
    """As for a thread that waits for a lock that the interrupted code has taken."""
    signals = StopSignals(0.01, lambda text: None, cleanup=0.05)

    def work() -> None:
        with signals:
            try:
                signal.raise_signal(signal.SIGINT)
                time.sleep(10)
            finally:
                threading.Event().wait()

    with pytest.raises(Interrupted):
        work()
    assert signals.stuck


def test_interrupted_stays_interrupted_when_another_error_follows() -> None:
    messages: list[str] = []

    def stopped(by: int) -> None:
        with StopSignals(0, messages.append):
            try:
                signal.raise_signal(by)
                time.sleep(1)
            finally:
                threading.Lock().release()  # as `with` does where it was interrupted before it had the lock

    with pytest.raises(Interrupted):
        stopped(signal.SIGINT)
    assert len(messages) == 1
    with StopSignals(math.inf, messages.append) as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.stopping.is_set()
    with pytest.raises(RuntimeError, match="unlocked"):  # no stop was asked for
        stopped(signal.SIGWINCH)


@pytest.mark.slow
def test_two_runs_on_one_output(
    run: Run, environment: dict[str, str], many: Path, small_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    first = subprocess.Popen(
        [script("vswin-extract"), str(many), str(out), "--weights", str(small_weights)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while not finished_parts(out):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    second = run("vswin-extract", many, out, "--weights", small_weights)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"being written by process {first.pid} on {os.uname().nodename}" in second.stderr
    assert first.wait(timeout=60) == 0


def test_videos_that_fail_are_recorded_and_the_run_goes_on(
    run: Run, videos: Path, small_weights: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "good.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (mixed / "bad.mp4").write_text("no video")
    (mixed / "worse.mkv").symlink_to(tmp_path / "nowhere")
    (mixed / "cut.mp4").write_bytes((videos / "a.mp4").read_bytes()[:2000])
    done = run("vswin-extract", mixed, tmp_path / "out.h5", "--weights", small_weights)
    assert done.returncode == 3
    assert "failed: bad.mp4: VideoUnreadable: no video container" in done.stderr
    with open_features(tmp_path / "out.h5") as features:
        assert list(features) == ["good.mp4"]
        assert [(f["id"], f["error"]) for f in features.failures] == [
            ("bad.mp4", "VideoUnreadable"),
            ("cut.mp4", "VideoUnreadable"),
            ("worse.mkv", "VideoMissing"),
        ]
    shown = run("vswin", "inspect", tmp_path / "out.h5")
    assert shown.returncode == 0
    assert "worse.mkv" in shown.stdout
    assert "1 with 4 clips, 3 failed" in shown.stdout
    facts = json.loads(run("vswin", "inspect", "--json", tmp_path / "out.h5").stdout)
    assert facts["clips"] == 4
    assert facts["videos"][0]["id"] == "good.mp4"


def test_a_damaged_video_is_partial_or_fails(run: Run, small_weights: Path, tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.mkv", 200, size=(320, 256))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    kept = run("vswin-extract", path, tmp_path / "kept.h5", "--weights", small_weights)
    assert kept.returncode == 0
    assert "partial: a.mkv" in kept.stderr
    with open_features(tmp_path / "kept.h5") as features:
        info = features["a.mkv"].info
        assert info["status"] == "partial"
        assert "it declares" in info["message"]
        assert 80 < info["frames"] < 160
    failed = run("vswin-extract", path, tmp_path / "f.h5", "--weights", small_weights, "--partial", "fail")
    assert failed.returncode == 3
    with open_features(tmp_path / "f.h5") as features:
        assert [failure["error"] for failure in features.failures] == ["VideoDamaged"]


@pytest.mark.slow
def test_messages_of_decoders_are_shown_only_with_verbose(
    run: Run, shell: Run, small_weights: Path, tmp_path: Path
) -> None:
    path = numbered.write(tmp_path / "a.ts", 100, size=(320, 256))
    content = bytearray(path.read_bytes())
    content[20_000:26_000] = bytes(6000)
    path.write_bytes(content)
    plainly = run("vswin-extract", path, tmp_path / "a.h5", "--weights", small_weights)
    assert plainly.returncode == 0
    assert "decoder:" not in plainly.stderr
    assert len(plainly.stderr.splitlines()) == 2  # the model, and that the video is partial
    verbose = shell("vswin-extract", path, tmp_path / "b.h5", "--weights", small_weights, "-v")
    assert "decoder: " in verbose.stderr


def test_too_large_a_batch_is_halved(
    small_weights: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the device is simulated. The error is the one that CUDA raises."""
    call = Backbone.of_frames

    def limited(self: Backbone, frames: torch.Tensor, index: torch.Tensor, *others: object, **more: object) -> object:
        if len(index) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, frames, index, *others, **more)  # type: ignore[arg-type]

    whole = tmp_path / "whole.h5"
    vswin_extract.extract(many, whole, weights=str(small_weights), batch_size=8)
    monkeypatch.setattr(Backbone, "of_frames", limited)
    notices: list[str] = []
    vswin_extract.extract(
        many, tmp_path / "out.h5", weights=str(small_weights), batch_size=8,
        on_event=lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
    )  # fmt: skip
    assert notices == ["out of memory with batches of 8 clips; going on with 2"]
    one, other = embeddings(whole), embeddings(tmp_path / "out.h5")
    assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(one)


FAILING_DEVICE = """
import torch, vswin_extract.backbone as backbone
call, calls = backbone.Backbone.of_frames, []
def failing(self, *arguments, **more):
    calls.append(1)
    if len(calls) > 4:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return call(self, *arguments, **more)
backbone.Backbone.of_frames = failing
"""


@pytest.mark.slow
def test_a_failed_device_starts_the_command_again_once(
    environment: dict[str, str], many: Path, small_weights: Path, tmp_path: Path
) -> None:
    """The device is simulated: in every process it fails after four batches."""
    (tmp_path / "failing.py").write_text(FAILING_DEVICE)
    starter = tmp_path / "start.py"
    starter.write_text("import failing\nfrom vswin_extract.cli.extract import extract\nextract()\n")
    out = tmp_path / "out.h5"
    options = ["--weights", str(small_weights), "--batch-size", "8", "--stride", "4"]
    command = [sys.executable, str(starter), str(many), str(out), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("starting again once") == 1
    assert "Traceback" not in done.stderr
    assert "what is finished is kept, and the same command continues" in done.stderr
    found = verify_output(out)
    assert 2 < found.videos < MANY  # of two processes
    assert found.problems == ()


@pytest.mark.slow
def test_a_video_that_changes_while_it_is_read(
    environment: dict[str, str], small_weights: Path, long: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(long.read_bytes())
    other = numbered.write(tmp_path / "b.mp4", 20)
    out = tmp_path / "out.h5"
    command = [script("vswin-extract"), str(path), str(other), str(out), "--weights", str(small_weights)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(out.with_name("out.h5.parts").glob("shard-*/*.rows.tmp")):
        time.sleep(0.002)
    with path.open("ab") as file:
        file.write(b"more")
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "failed: a.mp4: VideoChanged" in printed
    with open_features(out) as features:
        assert list(features) == ["b.mp4"]


def test_a_run_in_which_every_video_fails_writes_a_file(run: Run, small_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    done = run("vswin-extract", tmp_path / "bad.mp4", tmp_path / "out.h5", "--weights", small_weights)
    assert done.returncode == 3
    with open_features(tmp_path / "out.h5") as features:
        assert len(features) == features.clips == 0
        assert len(features.failures) == 1
    assert run("vswin", "inspect", tmp_path / "out.h5").returncode == 0


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
def test_half_precision_compression_and_pooling(
    run: Run, videos: Path, small_weights: Path, plain: Path, tmp_path: Path, compression: str
) -> None:
    out = tmp_path / "out.h5"
    done = run(
        "vswin-extract", videos, out, "--weights", small_weights, "--stride", 8, "--stage", 2, "--pool", "space",
        "--no-embedding", "--dtype", "float16", "--compression", compression,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(out, "r") as file, h5py.File(plain, "r") as whole:
        assert "embedding" not in file
        assert file["stage2"].compression == compression
        assert file["stage2"].dtype == np.float16
        expected = whole["stage2"][:].mean((2, 3))
        assert np.allclose(file["stage2"][:], expected, rtol=2e-3, atol=2e-3)


def test_three_crops_are_averaged(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", small_weights, "--crop", "three"]
    done = run("vswin-extract", videos, tmp_path / "three.h5", *arguments)
    assert done.returncode == 0, done.stderr
    model = vswin_extract.load_model(str(small_weights), device="cpu")
    geometry = Geometry(32, 32, "three")
    frames = [geometry.apply(picture_of(numbered.draw(p, 96, 64))) for p in Sampling(8, 2).clip(1, 50).positions]
    views = torch.from_numpy(np.stack(frames, 1))  # crops T size size 3
    expected = model(views).embedding
    assert expected is not None
    found = torch.from_numpy(embeddings(tmp_path / "three.h5")[1])
    assert torch.cosine_similarity(found, expected.mean(0), 0) > 0.995


def test_manifest_segments_and_fps(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,id,start,end\n{videos / 'a.mp4'},late,1,\n{videos / 'a.mp4'},x/early,,1\n")
    out = tmp_path / "out.h5"
    done = run("vswin-extract", "--manifest", manifest, out, "--weights", small_weights, "--fps", "15", "--stride", "4")
    assert done.returncode == 0, done.stderr
    with open_features(out) as features:
        assert list(features) == ["late", "x/early"]
        assert features["late"].times[:, 0].tolist() == pytest.approx([1.0])
        assert features["x/early"].frames[0].tolist() == [0, 30]  # shows 0, 2 … 28, and 29 is on screen meanwhile
        assert features["x/early"].times[0].tolist() == pytest.approx([0, 1])
        assert features["late"].info["start"] == 1.0
        assert features.info["sampling"]["fps"] == "15"


def test_a_list_on_standard_input(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    names = "a.mp4\nsub dir/a.mp4\n"
    done = run("vswin-extract", "-", tmp_path / "out.h5", "--weights", small_weights, input=names, cwd=videos)
    assert done.returncode == 0, done.stderr
    with open_features(tmp_path / "out.h5") as features:
        assert list(features) == ["a.mp4", "sub dir/a.mp4"]


def test_file_names_of_all_kinds(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    names = ["with space.mp4", "new\nline.mp4", "é中.mp4", "[bold]x.mp4", "a" * 200 + ".mp4", "esc\x1b[31m.mp4"]
    for name in names:
        (folder / name).write_bytes((videos / "a.mp4").read_bytes())
    (Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9.mp4"))).write_bytes((videos / "a.mp4").read_bytes())
    done = run("vswin-extract", folder, tmp_path / "out.h5", "--weights", small_weights, "-v")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    with open_features(tmp_path / "out.h5") as features:
        assert set(features) == {*names, "latin\\xe9.mp4"}
        assert len(features["new\nline.mp4"].embedding) == 4
    shown = run("vswin", "inspect", tmp_path / "out.h5")
    assert "[bold]x.mp4" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_dry_run_counts_and_writes_nothing(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    done = run(
        "vswin-extract", videos, tmp_path / "bad.mp4", tmp_path / "out.h5", "--weights", small_weights,
        "--stage", 4, "--dry-run",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "unreadable: bad.mp4" in done.stdout
    clips = sum(Sampling(8, 2).count(n) for n in (50, 33, 7))
    assert f"3 videos, about {clips} clips, {clips * 5 * 4 * NANO.channels(4) / 1000:.1f} kB" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4"]


WRONG = [
    (["nowhere", "OUT"], "no such file or directory: nowhere"),
    (["EMPTY", "OUT"], "no videos in"),
    (["VIDEOS"], "the last argument is the file to write"),
    (["VIDEOS", "OUT", "--stage", "5"], "'5' is no stage; stages are 1 to 4"),
    (["VIDEOS", "OUT", "--stride", "0"], "stride must be a whole number from 1 to 1000000000, not 0"),
    (["VIDEOS", "OUT", "--weights", "t-k4000"], "did you mean t-k400"),
    (["VIDEOS", "OUT", "--weights", "t-k400"], "vswin weights pull t-k400"),
    (["VIDEOS", "OUT", "--weights", "missing.pth"], "no weights at missing.pth"),
    (["VIDEOS", "OUT", "--weights", "SMALL", "--variant", "t"], "does not fit variant t"),
    (["VIDEOS", "OUT", "--device", "cuda"], "no CUDA device"),
    (["VIDEOS", "OUT", "--compile", "on", "--device", "cpu"], "is for CUDA"),
    (["VIDEOS", "OUT", "--workers", "many"], "neither auto nor a whole number"),
    (["VIDEOS", "OUT", "--device", "toaster"], "unknown device 'toaster'"),
    (["VIDEOS", "OUT", "--no-embedding"], "nothing to write"),
    (["VIDEOS", "OUT", "--crop", "three", "--stage", "4"], "--pool space"),
    (["VIDEOS", "OUT", "--size", "256", "--resize", "224"], "smaller than the crop"),
    (["VIDEOS", "OUT", "--fps", "fast"], "fps must be a number"),
    (["VIDEOS", "OUT", "--fps", "0"], "fps must be a number"),
    (["VIDEOS", "OUT", "--fps", "1e9999999"], "fps must be a number"),
    (["VIDEOS", "OUT", "--fps", "2000"], "fps must lie between"),
    (["VIDEOS", "OUT", "--clip-len", "1000000000"], "clip-len must be a whole number from 1 to 10000"),
    (["VIDEOS", "OUT", "--timeout", "inf"], "and finite"),
    (["VIDEOS", "."], "is a directory"),
    (["", "OUT"], "an empty name"),
    (["VIDEOS", "OUT", "--align", "center", "--tail", "drop"], "align start only"),
    (["VIDEOS", "OUT", "--batch-size", "0"], "batch-size must be a whole number from 1"),
    (["VIDEOS", "OUT", "--workers", "0"], "workers must be a whole number from 1"),
    (["VIDEOS", "OUT", "--timeout", "0"], "timeout must be more than 0"),
    (["VIDEOS", "OUT", "--pool", "some"], "'some' is not one of"),
    (["VIDEOS", "OUT", "--strid", "4"], "--stride"),
    (["VIDEOS", "nowhere/out.h5"], "/nowhere to write out.h5 into"),
    (["VIDEOS", "TEXT"], "was not written by vswin-extract"),
    (["VIDEOS", "TEXT", "--overwrite"], "was not written by vswin-extract"),
    (["VIDEOS", "EMPTY"], "is a directory"),
    (["VIDEOS", "DONE"], "add --overwrite"),
    (["VIDEOS", "OUT", "--manifest", "list.txt"], "must end in .csv or .tsv"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_usage_gets_one_line_and_writes_nothing(
    run: Run, videos: Path, small_weights: Path, plain: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("keep me")
    (tmp_path / "done.h5").write_bytes(plain.read_bytes())
    stand_ins = {
        "VIDEOS": videos, "OUT": tmp_path / "out.h5", "EMPTY": tmp_path / "empty", "TEXT": tmp_path / "text.txt",
        "DONE": tmp_path / "done.h5", "SMALL": small_weights,
    }  # fmt: skip
    done = run("vswin-extract", *[stand_ins.get(word, word) for word in arguments], "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done.h5", "empty", "text.txt"]
    assert (tmp_path / "text.txt").read_text() == "keep me"


def test_overwrite_replaces_when_the_new_one_is_complete(
    run: Run, videos: Path, small_weights: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    out.write_bytes(plain.read_bytes())
    done = run("vswin-extract", videos, out, "--weights", small_weights, "--overwrite")
    assert done.returncode == 0, done.stderr
    with open_features(out) as features:
        assert features.names == ["embedding"]


@pytest.mark.slow
def test_the_bundled_model_is_named_unless_it_was_chosen(run: Run, videos: Path, tmp_path: Path) -> None:
    done = run("vswin-extract", videos / "short.webm", tmp_path / "a.h5", "--size", 32)
    assert "nano is the small bundled model" in done.stderr
    quiet = run("vswin-extract", videos / "short.webm", tmp_path / "b.h5", "--size", 32, "--quiet")
    assert len(quiet.stderr.splitlines()) == 1
    assert "nano" in quiet.stderr
    chosen = run(
        "vswin-extract", videos / "short.webm", tmp_path / "c.h5", "--size", 32, "--quiet", "--weights", "nano"
    )
    assert (chosen.stderr, chosen.stdout, chosen.returncode) == ("", "", 0)
    loud = run("vswin-extract", videos / "short.webm", tmp_path / "d.h5", "--size", 32, "--weights", "nano")
    assert "trying" not in loud.stderr


def test_logits_of_weights_without_head(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    from vswin_extract.weights.checkpoints import save_checkpoint
    from vswin_extract.weights.load import read_checkpoint

    read = read_checkpoint(small_weights)
    state = {name: value for name, value in read.state.items() if not name.startswith("head.")}
    assert read.recipe is not None
    save_checkpoint(tmp_path / "headless.safetensors", state, read.variant, read.recipe)
    done = run("vswin-extract", videos, tmp_path / "o.h5", "--weights", tmp_path / "headless.safetensors", "--logits")
    assert done.returncode == 2
    assert "no classification head" in done.stderr


def test_values_that_do_not_fit_fail_their_video(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    from vswin_extract.weights.checkpoints import save_checkpoint
    from vswin_extract.weights.load import read_checkpoint

    read = read_checkpoint(small_weights)
    assert read.recipe is not None
    state = {**read.state, "norm.weight": read.state["norm.weight"] * 1e6}
    save_checkpoint(tmp_path / "loud.safetensors", state, read.variant, read.recipe)
    arguments = ["--weights", tmp_path / "loud.safetensors", "--dtype", "float16"]
    done = run("vswin-extract", videos, tmp_path / "out.h5", *arguments)
    assert done.returncode == 3
    assert "failed: a.mp4: NonFiniteFeatures" in done.stderr
    with open_features(tmp_path / "out.h5") as features:
        assert len(features) == 0
        assert len(features.failures) == 3


def test_the_python_api(videos: Path, small_weights: Path, tmp_path: Path) -> None:
    events: list[object] = []
    finished = vswin_extract.extract(
        videos, tmp_path / "out.h5", stages=[4], weights=str(small_weights), fps=12.5, on_event=events.append
    )
    assert isinstance(finished, Finished)
    assert (finished.videos, finished.failed) == (3, 0)
    assert events[-1] is finished
    with open_features(tmp_path / "out.h5") as features:
        assert features.info["sampling"]["fps"] == str(Fraction("12.5"))
    with pytest.raises(TypeError, match=r"extract\(\) got an unexpected keyword argument 'sride'"):
        vswin_extract.extract(videos, tmp_path / "x.h5", sride=3)  # type: ignore[call-arg]


def test_profile_prints_where_the_time_went(run: Run, videos: Path, small_weights: Path, tmp_path: Path) -> None:
    done = run("vswin-extract", videos, tmp_path / "out.h5", "--weights", small_weights, "--profile")
    assert done.returncode == 0, done.stderr
    assert "waiting for decoders" in done.stdout
    assert "idle for" in done.stdout
    assert "ms a clip" in done.stdout
    assert re.search(r"(-bound|start-up|waiting|balanced):", done.stdout)


def test_the_verdict_names_the_bottleneck(videos: Path, small_weights: Path, tmp_path: Path) -> None:
    """No part of a run can be busy for longer than the run takes. Each part can be the slowest."""
    finished = vswin_extract.extract(videos, tmp_path / "out.h5", weights=str(small_weights))
    profile = finished.profile
    own = profile.loaded + profile.waited + profile.held + profile.published
    assert 0 < own <= finished.seconds
    assert 0 < profile.computed <= finished.seconds
    assert profile.decoded > 0
    assert profile.processor > 0
    assert Profile(waited=5, computed=3, decoded=5).verdict(9).startswith("decode-bound")
    assert Profile(waited=5, computed=3, decoded=1).verdict(9).startswith("waiting")
    assert Profile(waited=1, computed=0.9, decoded=1).verdict(10).startswith("balanced")
    assert Profile(waited=1, computed=8).verdict(9).startswith("compute-bound")
    assert Profile(written=3, published=3, computed=4).verdict(9).startswith("write-bound")
    assert Profile(loaded=3, waited=1).verdict(9) == (
        "start-up: loading the model took longer than anything else; give it more videos at once (33% of the time)"
    )
