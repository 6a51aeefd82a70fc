"""Hypothesis strategies that several tests draw from."""

from hypothesis import strategies as st

from vswin_extract.video.sampling import Sampling


def samplings(clip_len: int, frame_interval: int, stride: int) -> st.SearchStrategy[Sampling]:
    """Draw samplings of both alignments and every tail, with lengths up to these."""
    lengths = {
        "clip_len": st.integers(1, clip_len),
        "frame_interval": st.integers(1, frame_interval),
        "stride": st.none() | st.integers(1, stride),
    }
    from_start = st.builds(Sampling, **lengths, tail=st.sampled_from(["pad", "drop", "shift"]))
    return from_start | st.builds(Sampling, **lengths, align=st.just("center"))
