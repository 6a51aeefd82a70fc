"""The ring of frames, here on the processor: clips come out as they are, and each frame is uploaded once."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vswin_extract.feeding.frame_memory import FrameMemory, FrameSlot
from vswin_extract.feeding.process import DecodedClip
from vswin_extract.worker import frame_ring
from vswin_extract.worker.frame_ring import REGISTERED_AT_ONCE, FrameRing, runs

SHAPE = (2, 3, 3, 3)
CPU = torch.device("cpu")


def filled(memory: FrameMemory, value: int) -> FrameSlot:
    slot = memory.take()
    memory.frames(SHAPE)[slot.number] = np.arange(54).reshape(SHAPE) + value % 100
    return slot


def clip_of(memory: FrameMemory, slots: list[FrameSlot]) -> DecodedClip:
    return DecodedClip(0, memory, SHAPE, tuple(slots), (0, 1), (0.0, 1.0), len(slots))


def check(ring: FrameRing, clips: list[DecodedClip]) -> None:
    frames, index = ring.load(clips)
    for crop in range(2):
        found = frames[:, crop][index]
        assert np.array_equal(found, np.stack([clip.views[crop] for clip in clips]))


@settings(max_examples=40)
@given(
    length=st.integers(1, 6),
    stride=st.integers(1, 8),
    batch=st.integers(1, 4),
    spare=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_clips_are_what_they_were(length: int, stride: int, batch: int, spare: int, seed: int) -> None:
    """Several videos in turn, whose clips overlap or not; slots are reused; batches of any sizes up to the largest."""
    choice = random.Random(seed)
    memory = FrameMemory(200, 54)
    windows: list[deque[FrameSlot]] = [deque() for _ in range(3)]
    value = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_ring, "SPARE", spare)
        ring = FrameRing(CPU)
        for _ in range(20):
            clips = []
            for _ in range(choice.randint(1, batch)):
                window = windows[0]
                windows = [*windows[1:], window]
                for _ in range(min(stride, len(window))):
                    window.popleft()
                while len(window) < length:
                    window.append(filled(memory, value))
                    value += 1
                clips.append(clip_of(memory, [*window, window[-1]]))
            check(ring, clips)


def test_a_frame_that_many_clips_show_is_uploaded_once() -> None:
    memory, ring = FrameMemory(100, 54), FrameRing(CPU)
    slots = [filled(memory, number) for number in range(40)]
    for first in range(0, 32, 2):
        check(ring, [clip_of(memory, slots[first : first + 8])])
    assert ring.uploaded == 38
    numbers = [slot.number for slot in slots]
    del slots
    again = [filled(memory, 50 + number) for number in range(8)]
    assert {slot.number for slot in again} <= set(numbers)
    check(ring, [clip_of(memory, again)])  # other frames in the same slots
    assert ring.uploaded == 46


def test_the_ring_grows_and_is_given_back() -> None:
    memory, ring = FrameMemory(3000, 54), FrameRing(CPU)
    slots = [filled(memory, number) for number in range(2000)]
    check(ring, [clip_of(memory, slots[:10])])
    check(ring, [clip_of(memory, slots)])
    ring.clear()
    check(ring, [clip_of(memory, slots[5:25])])
    ring.close()
    other = FrameMemory(10, 54)
    check(ring, [clip_of(other, [filled(other, 1)])])


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=30))
def test_runs_are_the_moves(moves: list[tuple[int, int]]) -> None:
    moves = sorted(moves)
    found = [(slot + k, place + k) for slot, place, count in runs(moves) for k in range(count)]
    assert found == moves
    for slot, _, count in runs(moves):
        assert slot // REGISTERED_AT_ONCE == (slot + count - 1) // REGISTERED_AT_ONCE
