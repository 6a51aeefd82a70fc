"""Feeding: from tasks to clips of pixels with their times. Videos are decoded in processes of their own, so that a
broken one ends at most one of them. Nothing here imports torch.

    process.py     (parent)  DecoderProcess takes tasks and returns clips; it replaces a child that hangs or dies
    messages.py              what parent and child send to each other: numbers, no pixels
    frame_memory.py          memory for frames that they share; each frame is written there once
    child.py       (child)   decodes tasks one after another, and fetches the next video meanwhile
    positions.py   (child)   the frames of a task's segment, resampled if need be
    pictures.py    (child)   small pictures of moments of a video, for pages
    by_table.py    (child)   where it pays, only frames that clips show are decoded, by a table of all frames
    sender.py      (child)   frames into the shared memory, and messages that name them
"""
