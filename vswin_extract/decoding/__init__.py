"""Decoding: from tasks to clips of pixels with their times, in processes of their own, so that a broken video ends at
most one of them. Nothing here imports torch.

    process.py  (parent)  DecoderProcess takes tasks and returns clips; it replaces a child that hangs or dies
    messages.py           what parent and child send to each other
    child.py    (child)   decodes tasks one after another, and fetches the next video meanwhile
    decoders.py           the protocol of decoders, and the list of them; pyav.py and decord.py implement it
    stamps.py             which of the two time stamps of a frame says when it is shown
    coverage.py           which bytes of a file its packets cover, by which holes and a second recording are noticed
    timeline.py           a decoder's frames on one clock: when each is shown, from the first frame on
    positions.py          the frames of a task's segment, resampled if need be; then `video.rows` and `video.geometry`

To add a decoder: write a file beside pyav.py with a class that follows the protocol `Decoder` of decoders.py. Add its
name to `DecoderName` and its class to `decoder_class` there. tests/test_decoder_process.py and
tests/test_hard_videos.py run with every name in `DecoderName`.
"""
