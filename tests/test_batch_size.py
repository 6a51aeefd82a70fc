"""How many clips a GPU computes at once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.network.variants import VARIANTS
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.worker.batch_size import MOST_CLIPS, OF_DEVICE, OF_HOST, clip_bytes, fitting_batch
from vswin_extract.worker.pipeline import clips_in_use

GB = 1 << 30
SAMPLING, GEOMETRY = Sampling(clip_len=32, frame_interval=2), Geometry(size=224, resize=256)
FRAMES = 32 * 224 * 224 * 3
sizes = st.integers(0, 200 * GB)


@given(sizes, st.integers(1, 10 * GB), st.none() | sizes, st.integers(1, GB), st.integers(1, 8))
def test_a_batch_fits_and_twice_as_many_clips_do_not(
    free: int, of_clip: int, memory: int | None, of_frames: int, threads: int
) -> None:
    def fits(batch: int) -> bool:
        on_host = memory is None or clips_in_use(threads, batch) * of_frames <= memory // OF_HOST
        return batch * of_clip <= free // OF_DEVICE and on_host

    batch = fitting_batch(free, of_clip, memory, of_frames, threads)
    assert batch in (1, 2, 4, 8, 16, 32)
    assert batch == 1 or fits(batch)
    assert batch == MOST_CLIPS or not fits(2 * batch)
    assert fitting_batch(free + GB, of_clip, memory, of_frames, threads) >= batch


@pytest.mark.parametrize(
    ("name", "free", "batch"), [("t", 79, 32), ("l", 79, 32), ("t", 15, 32), ("b", 7, 8), ("l", 7, 8), ("l", 1, 1)]
)
def test_batches_of_published_sizes(name: str, free: int, batch: int) -> None:
    of_clip = clip_bytes(VARIANTS[name], "bf16", SAMPLING, GEOMETRY, ())
    assert fitting_batch(free * GB, of_clip, 64 * GB, FRAMES, 1) == batch


def test_maps_and_exact_attention_need_memory_and_little_memory_of_the_host_is_enough() -> None:
    plain = clip_bytes(VARIANTS["t"], "bf16", SAMPLING, GEOMETRY, ())
    assert clip_bytes(VARIANTS["t"], "bf16", SAMPLING, GEOMETRY, (1,)) - plain == 2 * 4 * 16 * 56 * 56 * 96
    assert clip_bytes(VARIANTS["t"], "bf16", SAMPLING, GEOMETRY, (4,)) - plain == 2 * 4 * 16 * 7 * 7 * 768
    assert clip_bytes(VARIANTS["t"], "fp32", SAMPLING, GEOMETRY, ()) > 4 * plain
    assert clip_bytes(VARIANTS["t"], "bf16", replace(SAMPLING, clip_len=64), GEOMETRY, ()) > 1.9 * plain
    assert fitting_batch(79 * GB, plain, 4 * GB, FRAMES, 1) == 8
    assert fitting_batch(79 * GB, plain, None, FRAMES, 1) == 32
