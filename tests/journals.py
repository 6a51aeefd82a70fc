"""Journals without a network: videos whose values tell their number."""

from pathlib import Path

import numpy as np

from vswin_extract.checks.output import verify_output
from vswin_extract.journal.journal import Journal, open_journal
from vswin_extract.journal.writer import JournalWriter
from vswin_extract.store.features import open_features
from vswin_extract.store.schema import Arrays, VideoRecord
from vswin_extract.video.videos import Video

ARRAYS = Arrays({"embedding": (64,), "stage4": (2, 3, 3, 64)})
SETTINGS = {"settings": 1}
ATTRIBUTES = {
    "model": "none",
    "weights_sha256": "0" * 64,
    "sampling": {"clip_len": 8},
    "preprocessing": {},
    "precision": "fp32",
    "decoder": "pyav",
}


def names(count: int) -> list[str]:
    return [f"v/{number:05}.mp4" for number in range(count)]


def begin(output: Path, count: int = 10_000, storage: Path | None = None, overwrite: bool = False) -> Journal:
    return open_journal(output, SETTINGS, ARRAYS, overwrite, names(count), storage=storage)


def fails(number: int) -> bool:
    return number % 7 == 6


def add(writer: JournalWriter, number: int) -> None:
    """Commit a video of one to three clips whose values tell its number. Every seventh video fails."""
    name, clips = f"v/{number:05}.mp4", 1 + number % 3
    if fails(number):
        writer.commit(VideoRecord(name, name, "failed", size=number, error="VideoUnreadable", message="no"))
        return
    part = writer.part(Video(name, Path(name)))
    values = np.arange(clips)[:, None] / 10 + number
    part.append(
        {
            "embedding": np.broadcast_to(values, (clips, 64)),
            "stage4": np.broadcast_to(values.reshape(-1, 1, 1, 1, 1), (clips, 2, 3, 3, 64)),
            "clips/frames": np.array([[8 * k, 8 * k + 8] for k in range(clips)]),
            "clips/times": np.array([[k / 2, k / 2 + 0.5] for k in range(clips)]),
            "clips/valid": np.full(clips, 8),
        }
    )
    writer.commit(VideoRecord(name, name, "ok", clips=clips, fps=16.0, frames=8 * clips, size=number), part)


def publish(journal: Journal, count: int) -> None:
    journal.load(verify=False)
    journal.publish(names(count), ATTRIBUTES)


def expect_complete(output: Path, count: int) -> None:
    """The output has videos 0 to `count`, as `add` made them, and `check` finds nothing wrong."""
    with open_features(output) as features:
        assert list(features) == [name for number, name in enumerate(names(count)) if not fails(number)]
        assert [failure["id"] for failure in features.failures] == names(count)[6::7]
        for number, name in enumerate(names(count)):
            if not fails(number):
                video = features[name]
                assert len(video) == 1 + number % 3
                assert np.allclose(video.embedding[:, 5], np.arange(len(video)) / 10 + number)
                assert np.allclose(video.stage4[-1], (len(video) - 1) / 10 + number)
    found = verify_output(output)
    assert found.problems == ()
    assert found.finished
