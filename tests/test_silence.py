"""How long workers may be silent, and what does not count as silence."""

import time

from vswin_extract.job.events import ClipsDone, Profile
from vswin_extract.pools.silence import FIRST_CLIPS, STARTING, Silence
from vswin_extract.processes import waited
from vswin_extract.store.schema import Arrays
from vswin_extract.video.geometry import Geometry
from vswin_extract.video.sampling import Sampling
from vswin_extract.worker.messages import Heartbeat, Ready, WorkerDone

READY = Ready({}, Arrays({}), Sampling(2, 1), Geometry(32, 32), {}, (), 0, (), decoders=2)


def pass_seconds(silence: Silence, seconds: float) -> None:
    for _ in range(int(seconds / silence.step)):
        silence.wait(silence.step)


def test_the_worker_that_sends_nothing_is_lost() -> None:
    silence = Silence(10)
    for worker in (0, 1):
        silence.begin(worker)
        silence.hear(worker, READY)
        silence.hear(worker, ClipsDone(1))
    pass_seconds(silence, 9)
    silence.hear(1, Heartbeat())
    assert silence.lost() is None
    pass_seconds(silence, 2)
    lost = silence.lost()
    assert lost is not None
    assert (lost[0], "10 s" in lost[1].reason) == (0, True)
    silence.end(0)
    assert silence.lost() is None


def test_a_worker_may_take_long_to_load_the_model_and_after_it_is_done() -> None:
    silence = Silence(10)
    silence.begin(0)
    pass_seconds(silence, STARTING - 2)
    assert silence.lost() is None
    pass_seconds(silence, 2)
    assert silence.lost() is not None
    silence.begin(0)
    silence.hear(0, READY)
    pass_seconds(silence, FIRST_CLIPS - 1)  # libraries that it needs for the first clips are imported
    assert silence.lost() is None
    silence.hear(0, WorkerDone(Profile(), False))
    pass_seconds(silence, 2 * STARTING)
    assert silence.lost() is None


def test_a_suspended_process_does_not_wait() -> None:
    now = time.monotonic()
    assert waited(now - 0.5, 1.0) >= 0.5
    assert waited(now - 1.2, 1.0) == 1.0  # a busy machine
    assert waited(now - 3600, 1.0) == 0.0
