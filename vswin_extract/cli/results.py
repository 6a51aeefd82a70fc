"""How the results of `vswin extract` are printed."""

import os
import shlex
from typing import TYPE_CHECKING

from vswin_extract.cli.console import say, stdout, table
from vswin_extract.cli.merge import merge_command
from vswin_extract.formatting import human_bytes, plural

if TYPE_CHECKING:
    from vswin_extract.job.events import Finished, ShardDone
    from vswin_extract.run.survey import Survey


def show_survey(survey: "Survey") -> None:
    """Print what --dry-run found."""
    out = stdout()
    for video_id, why in survey.unreadable.items():
        say(out, f"unreadable: {video_id}: {why}")
    out.print(
        f"{plural(len(survey.clips), 'video')}, about {plural(sum(survey.clips.values()), 'clip')}, "
        f"{human_bytes(survey.bytes)} of features before compression, {len(survey.unreadable)} unreadable. "
        "Counted from packets; nothing was decoded or written."
    )


def show_summary(finished: "Finished") -> None:
    """Print what a finished run wrote."""
    inspect = shlex.join(["vswin", "inspect", str(finished.output)])
    some_old = finished.new_clips < finished.clips
    rows = [
        ("output", f"{finished.output} ({human_bytes(finished.bytes)})"),
        ("videos", f"{finished.videos}" + (f", {finished.partial} of them partial" if finished.partial else "")),
        ("failed", f"{finished.failed}" + (f", see: {inspect}" if finished.failed else "")),
        ("clips", f"{finished.clips}" + (f", {finished.new_clips} of them new" if some_old else "")),
        ("time", _time(finished.new_clips, finished.seconds)),
    ]
    stdout().print(table(rows))


def show_shard(done: "ShardDone", layout: str) -> None:
    """Print what a shard has done, and how all shards become one output of this layout."""
    if done.merged:
        say(stdout(), f"shard {done.shard}: nothing to do, {done.output} is complete")
        return
    command = shlex.join(["vswin", *merge_command(done.output, done.journal, layout, os.path.lexists(done.output))])
    rows = [
        ("shard", f"{done.shard}, complete; when all shards are: {command}"),
        ("videos", f"{done.videos}, or clip ranges of them"),
        ("failed", f"{done.failed}"),
        ("clips", f"{done.new_clips} new"),
        ("time", _time(done.new_clips, done.seconds)),
    ]
    stdout().print(table(rows))


def _time(clips: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {clips / seconds if seconds else 0.0:.1f} clips/s"


def show_profile(finished: "Finished | ShardDone") -> None:
    """Print where the time of a run went."""
    profile = finished.profile
    per_clip = 1000 * profile.processor / max(1, finished.new_clips)
    idle = 1 - min(1.0, profile.computed / max(1e-9, finished.seconds - profile.loaded))
    rows = [
        ("loading the model", profile.loaded),
        (f"waiting for decoders ({profile.decoders} processes at the end)", profile.waited),
        ("making batches", profile.gathered),
        ("waiting for the network and the writer", profile.held),
        ("making the output", profile.published),
        (f"the network, on the device (idle for {idle:.0%} since it was loaded)", profile.computed),
        ("writing rows, beside the rest", profile.written),
        ("decoding, processor time of all decoders", profile.decoded),
        (f"everything else, processor time ({per_clip:.1f} ms a clip)", profile.processor),
    ]
    out = stdout()
    timed = [(name, f"{seconds:.2f} s", f"{seconds / finished.seconds:.0%}") for name, seconds in rows]
    out.print(table(timed, ("where the time went", "", "of the run"), right=("", "of the run")))
    out.print(profile.verdict(finished.seconds), markup=False)
