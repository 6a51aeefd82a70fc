"""Decoding: a video file comes in, its frames come out, upright, in RGB, each with exact times. Nothing here imports
torch.

    decoders.py   the protocol of decoders, and the list of them; pyav.py and decord.py implement it
    stamps.py     which of the two time stamps of a frame says when it is shown
    coverage.py   which bytes of a file its packets cover, by which holes and a second recording are noticed
    pictures.py   the pixels of a decoded frame
    bitstreams.py what a packet says in its first bytes: can decoding begin at it, does another frame need it?
    frame_table.py which frames a video has, by its packets alone; chosen.py decodes some of them, and compares
    timeline.py   a decoder's frames on one clock: when each is shown, from the first frame on

To add a decoder: write a file beside pyav.py with a class that follows the protocol `Decoder` of decoders.py. Add its
name to `DecoderName` and its class to `decoder_class` there. tests/test_decoder_process.py and
tests/test_hard_videos.py run with every name in `DecoderName`.
"""
