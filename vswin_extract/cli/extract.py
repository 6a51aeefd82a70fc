"""`vswin extract`, also installed as `vswin-extract`."""

import ctypes
import logging
import os
import re
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click

from vswin_extract.cli.complete import weights_names
from vswin_extract.cli.config import check_environment, read_config, write_config
from vswin_extract.cli.console import (
    EXIT_CODES,
    LAYOUT,
    RUN,
    Choice,
    GroupedCommand,
    Interrupted,
    Several,
    StopSignals,
    by_environment,
    fail,
    option,
    origins,
    reports_errors,
    stderr,
    stdout,
    table,
)
from vswin_extract.cli.versions import version_option
from vswin_extract.formatting import human_bytes, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from vswin_extract.job.events import Finished, ShardDone
    from vswin_extract.job.job import Job

MODEL, CLIPS, PIXELS, INPUT, OUTPUT = "Model", "Clips", "Pixels", "Input", "Output"
NO_JOB = ("dry_run", "profile", "quiet", "verbose", "grace")
"""Options that say nothing of the job itself."""


@click.command(
    cls=GroupedCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Options come from the command line, else from variables as VSWIN_EXTRACT_CLIP_LEN, else from --config.\n\n"
    "\b\nExit codes:\n" + "\n".join(f"  {code:<5}{text}" for code, text in EXIT_CODES.items() if code != 4),
)
@click.argument("inputs", cls=Several, nargs=-1, metavar="VIDEOS...", type=click.Path())
@click.argument("output", metavar="OUT.h5", type=click.Path())
@option(
    OUTPUT,
    "--stage",
    "stages",
    type=int,
    multiple=True,
    metavar="1-4",
    help="Write the map of this stage, per clip: 1 to 3 before patch merging, 4 after the final norm. Repeatable.",
)
@option(
    OUTPUT,
    "--pool",
    type=Choice(["none", "space", "all"]),
    default="none",
    show_default=True,
    help="Stage maps as they are (T',H',W',C), averaged over space (T',C), or over all (C).",
)
@option(
    OUTPUT,
    "--embedding/--no-embedding",
    default=True,
    show_default=True,
    help="Write the embedding, the mean of stage 4. Without it and --logits, stages after the last one asked "
    "for are not computed.",
)
@option(OUTPUT, "--logits", is_flag=True, help="Write the classification head's output, too.")
@option(
    OUTPUT,
    "--dtype",
    type=Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the features in the file.",
)
@option(
    OUTPUT,
    "--compression",
    type=Choice(["none", "lzf", "gzip"]),
    default="none",
    show_default=True,
    help="HDF5 compression of the features.",
)
@option(
    OUTPUT,
    "--layout",
    **LAYOUT,
)
@option(OUTPUT, "--overwrite", is_flag=True, help="Replace OUT.h5 if it is there, once the new one is complete.")
@option(CLIPS, "--clip-len", type=int, metavar="FRAMES", help="Frames of a clip.  [default: the weights' recipe, 32]")
@option(
    CLIPS,
    "--frame-interval",
    type=int,
    metavar="FRAMES",
    help="From one frame of a clip to the next.  [default: the weights' recipe, 2]",
)
@option(
    CLIPS,
    "--stride",
    type=int,
    metavar="FRAMES",
    help="From the start of a clip to the start of the next.  [default: the clip's span, clip-len x frame-interval]",
)
@option(
    CLIPS,
    "--fps",
    metavar="RATE",
    help="Resample to this rate by time stamps first, e.g. 15 or 30000/1001; interval and stride then count "
    "resampled frames.",
)
@option(
    CLIPS,
    "--align",
    type=Choice(["start", "center"]),
    default="start",
    show_default=True,
    help="Clip k starts at k x stride, or is centred on stride/2 + k x stride.",
)
@option(
    CLIPS,
    "--tail",
    type=Choice(["pad", "drop", "shift"]),
    default="pad",
    show_default=True,
    help="Frames after the last whole clip: repeat the last frame, leave them out, or end a last clip on the "
    "last frame.",
)
@option(
    PIXELS, "--size", type=int, metavar="PIXELS", help="Side of the square crop.  [default: the weights' recipe, 224]"
)
@option(
    PIXELS,
    "--resize",
    type=int,
    metavar="PIXELS",
    help="Short side before the crop.  [default: the weights' recipe, in proportion to --size]",
)
@option(
    PIXELS,
    "--crop",
    type=Choice(["center", "three"]),
    default="center",
    show_default=True,
    help="One crop, or the average over three along the long side.",
)
@option(
    INPUT,
    "--manifest",
    type=click.Path(),
    metavar="FILE",
    help="A .csv or .tsv with the columns path[,id,start,end], times in seconds.",
)
@option(
    INPUT,
    "--decoder",
    type=Choice(["pyav", "decord"]),
    default="pyav",
    show_default=True,
    help="decord only to reproduce features made with it.",
)
@option(
    INPUT,
    "--partial",
    type=Choice(["keep", "fail"]),
    default="keep",
    show_default=True,
    help="A video of which only a part decodes: keep the part, or count it as failed.",
)
@option(
    INPUT,
    "--workers",
    default="auto",
    show_default=True,
    metavar="auto|N",
    callback=lambda context, parameter, text: parse_workers(text),
    help="Decoder processes of each device; auto: a quarter of its share of the cores, at least 2, or up to 8 beside a "
    "GPU.",
)
@option(
    INPUT,
    "--timeout",
    type=float,
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Give up on a video after this long without progress.",
)
@option(
    INPUT,
    "--cache-dir",
    type=click.Path(),
    metavar="DIR",
    help="Where remote videos are while they are decoded: a local disk.  [default: one for you in $TMPDIR or /tmp]",
)
@option(
    INPUT,
    "--cache-size",
    default="10GB",
    show_default=True,
    metavar="SIZE",
    callback=lambda context, parameter, text: parse_bytes(text),
    help="No video is fetched ahead that would make it larger; runs on one machine share it.",
)
@option(
    MODEL,
    "--weights",
    default="nano",
    show_default=True,
    metavar="NAME|FILE",
    shell_complete=weights_names,
    help="The bundled nano, a name from `vswin weights list`, or a checkpoint file.",
)
@option(
    MODEL, "--variant", metavar="T|S|B|L", help="Size of the network, instead of the one that the weights' shapes tell."
)
@option(
    MODEL,
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda or cuda:0; a process each for several: cuda:0,1 or cuda:all, cpu:2.",
)
@option(
    MODEL,
    "--precision",
    type=Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 where the device has instructions for it; else fp32 on the CPU, fp16 on CUDA.",
)
@option(
    MODEL,
    "--compile",
    type=Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile the network on CUDA; auto: for 100,000 clips and more. On a CPU it is faster as it is.",
)
@option(
    MODEL, "--batch-size", type=int, metavar="CLIPS", help="Clips computed at once.  [default: 1 on the CPU, 8 on CUDA]"
)
@option(
    RUN,
    "--shard",
    default="auto",
    show_default=True,
    metavar="auto|none|I/N",
    help="Extract part I of N, counted from 0, into OUT.h5.parts; `vswin merge OUT.h5` makes the file of all parts. "
    "auto: in a task of a Slurm array, or one of several tasks of srun, its part of what all of them extract (an array "
    "resubmitted with fewer tasks shares out everything among those); else everything.",
)
@option(
    RUN,
    "--storage",
    type=click.Path(),
    metavar="DIR",
    help="Keep unfinished work in this directory, which all hosts share.  [default: beside OUT.h5]",
)
@option(
    RUN,
    "--engine",
    type=Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Devices of this machine, or actors on a Ray cluster that this machine is a node of.",
)
@option(
    RUN,
    "--ray-address",
    default="auto",
    show_default=True,
    metavar="HOST:PORT",
    help="With --engine ray: the cluster; auto: $RAY_ADDRESS, or the one that runs here.",
)
@option(
    RUN,
    "--actors",
    type=int,
    metavar="N",
    help="With --engine ray: a GPU each, or a part of the cores.  [default: as many as there is room for]",
)
@option(
    RUN,
    "--config",
    type=click.Path(),
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="Take what the command line and the environment leave open from this file: `stage = [4]`, `videos = "
    '["a.mp4"]`, `output = "out.h5"`, paths from the working directory. A run writes what it used to OUT.toml.',
)
@option(RUN, "--dry-run", is_flag=True, help="Count videos, clips and bytes; decode and write nothing.")
@option(
    RUN,
    "--grace",
    type=click.FloatRange(min=0),
    default=20,
    show_default=True,
    metavar="SECONDS",
    help="After Ctrl-C, SIGTERM or SIGUSR1: time for the videos in flight to finish.",
)
@option(RUN, "--profile", is_flag=True, help="Print where the time went, and what would make the run faster.")
@option(
    RUN, "-q", "--quiet", is_flag=True, help="Say nothing but errors, and that it is nano unless --weights says so."
)
@option(RUN, "-v", "--verbose", is_flag=True, help="Print what happens to each video, and the decoders' own messages.")
@version_option()
@reports_errors
def extract(
    inputs: tuple[str, ...],
    output: str,
    shard: str,
    dry_run: bool,
    profile: bool,
    quiet: bool,
    verbose: bool,
    grace: float,
    **options: Any,
) -> None:
    """Extract Video Swin features of VIDEOS (directories, files, s3://, https:// and other addresses, or - for a list
    of them on standard input) into one HDF5 file: per clip an embedding and, with --stage, the maps of stages."""
    from vswin_extract.run.slurm import own_shard

    context = click.get_current_context()
    check_environment(context)
    if verbose:
        logger = logging.getLogger("vswin_extract")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(logging.StreamHandler())
    if shard == "auto":
        task, names = own_shard(os.environ) or (None, "")
        shard = "none" if task is None else str(task)
        if task is not None and not quiet:
            click.echo(f"note: shard {task}, by {names}; --shard none extracts everything", err=True)
    job = make_job(inputs, output, shard=shard, **options)

    from vswin_extract.job.events import ShardDone

    if dry_run:
        sys.exit(3 if show_survey(job) else 0)
    console = stderr()
    if not quiet and (elsewhere := origins(context)):
        console.print(f"note: options come from {printable(elsewhere)}, too", markup=False)
    given = context.get_parameter_source("weights")
    chosen = given is not None and given.name != "DEFAULT"
    keep_memory()
    finished = follow(job, console, quiet, verbose, grace, notice=not (quiet and chosen))
    if (why := write_config(context, finished.output)) and not quiet:
        console.print(f"note: {printable(why)}", markup=False)
    if isinstance(finished, ShardDone):
        if not quiet:
            show_shard(finished)
    elif not quiet:
        show_summary(finished)
    if profile:
        show_profile(finished)
    sys.exit(3 if finished.failed else 0)


by_environment(extract, "VSWIN_EXTRACT")


def make_job(
    inputs: tuple[str, ...],
    output: str,
    stages: tuple[int, ...],
    fps: str | None,
    manifest: str | None,
    variant: str | None,
    shard: str,
    storage: str | None,
    **options: Any,
) -> "Job":
    """The job that a command line asks for. Raises UsageError."""
    from pathlib import Path

    from vswin_extract.video.remote import is_remote, without_secrets
    from vswin_extract.video.videos import find_videos

    if not inputs and manifest is None and os.path.exists(output):
        fail(f"the last argument is the file to write: vswin-extract {printable(output)} out.h5", 2)
    if is_remote(output):
        shown = without_secrets(output)
        fail(f"the last argument is the file to write, which is on this machine, as out.h5, not {shown}", 2)
    listed = [os.fsdecode(line) for line in sys.stdin.buffer] if "-" in inputs else []
    videos = find_videos([path for path in inputs if path != "-"], manifest, listed)

    from vswin_extract.job.job import Job, parse_fps, parse_stages  # torch, which takes a second
    from vswin_extract.job.shard import parse_shard

    return Job(
        videos=videos,
        output=Path(os.path.realpath(output)) if output else Path(),  # a link stays, and what it points at is written
        stages=parse_stages(stages),
        fps=parse_fps(fps),
        variant=variant and variant.lower(),
        shard=None if shard == "none" else parse_shard(shard),
        storage=None if storage is None else Path(os.path.realpath(storage)),
        **options,
    )


def parse_workers(text: str) -> int | None:
    """`auto` is None, as the library has it."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a whole number") from None


def parse_bytes(text: str) -> int:
    """20GB, 500 MB or plain bytes; in powers of 1000, as sizes are printed."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size like 10GB or 500MB")
    return int(float(found[1]) * 1000.0 ** " kmgt".index(found[2].lower() or " "))


def keep_memory() -> None:
    """Have glibc keep up to 256 MB of what is freed, in pieces up to 32 MB: the next clip takes as much again, and a
    tenth of a CPU's time would go into page faults."""
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD


def follow(
    job: "Job", console: "Console", quiet: bool, verbose: bool, grace: float, notice: bool
) -> "Finished | ShardDone":
    """Run the job and show how it goes: a live display on a terminal, lines elsewhere."""
    from vswin_extract.cli.progress import LiveProgress, LogProgress, Quiet
    from vswin_extract.job.events import Finished, ShardDone, Started
    from vswin_extract.journal.journal import journal_directory
    from vswin_extract.run.run import run

    live = sys.stderr.isatty() and not console.is_dumb_terminal  # whatever FORCE_COLOR says
    progress = Quiet(console) if quiet else (LiveProgress if live else LogProgress)(console, verbose)
    try:
        with progress, StopSignals(grace, progress.say) as signals, closing(run(job, signals.stopping)) as events:
            for event in events:
                progress.show(event)
                if isinstance(event, Started) and event.model == "nano" and notice:
                    progress.say(
                        "nano is the small bundled model, for trying things out; a full-size one: "
                        "vswin weights pull t-k400, then --weights t-k400"
                    )
                if isinstance(event, Finished | ShardDone):
                    return event
    except Interrupted:
        console.print("stopped at once; the videos in flight will be extracted again")
    parts = journal_directory(job.output, job.storage)
    if not progress.total:
        done = "nothing was begun"
    elif parts.is_dir():
        done = f"{progress.videos} of {progress.total} videos are done, kept in {printable(str(parts))}"
    else:
        done = "no video was finished"
    click.echo(f"stopped: {done}; the same command continues", err=True)
    sys.exit(signals.code)


def show_survey(job: "Job") -> int:
    """What --dry-run prints; how many videos are unreadable."""
    from vswin_extract.run.run import survey

    found = survey(job)
    out = stdout()
    for video_id, why in found.unreadable.items():
        out.print(f"unreadable: {printable(video_id)}: {printable(why)}", markup=False)
    out.print(
        f"{plural(len(found.clips), 'video')}, about {plural(sum(found.clips.values()), 'clip')}, "
        f"{human_bytes(found.bytes)} of features "
        f"before compression, {len(found.unreadable)} unreadable. Counted from packets; nothing was decoded or written."
    )
    return len(found.unreadable)


def show_summary(finished: "Finished") -> None:
    rate = finished.new_clips / finished.seconds if finished.seconds else 0.0
    some_old = finished.new_clips < finished.clips
    rows = [
        ("output", f"{finished.output} ({human_bytes(finished.bytes)})"),
        ("videos", f"{finished.videos}" + (f", {finished.partial} of them partial" if finished.partial else "")),
        ("failed", f"{finished.failed}" + (", see: vswin inspect" if finished.failed else "")),
        ("clips", f"{finished.clips}" + (f", {finished.new_clips} of them new" if some_old else "")),
        ("time", f"{finished.seconds:.1f} s, {rate:.1f} clips/s"),
    ]
    stdout().print(table(rows))


def show_shard(done: "ShardDone") -> None:
    rate = done.new_clips / done.seconds if done.seconds else 0.0
    if done.merged:
        stdout().print(f"shard {done.shard}: nothing to do, {done.output} is complete", markup=False)
        return
    inside = done.journal.parent == done.output.parent
    command = f"vswin merge {done.output}" + ("" if inside else f" {done.journal}")
    rows = [
        ("shard", f"{done.shard}, through; when all are: {command}"),
        ("videos", f"{done.videos}, or spans of them"),
        ("failed", f"{done.failed}"),
        ("clips", f"{done.new_clips} new"),
        ("time", f"{done.seconds:.1f} s, {rate:.1f} clips/s"),
    ]
    stdout().print(table(rows))


def show_profile(finished: "Finished | ShardDone") -> None:
    profile = finished.profile
    rows = [
        ("loading the model", profile.loaded),
        ("waiting for decoders", profile.waited),
        ("making batches", profile.gathered),
        ("waiting for the network and the writer", profile.held),
        ("making the output", profile.published),
        ("the network, on the device", profile.computed),
        ("writing rows, beside the rest", profile.written),
        ("decoding, processor time of all decoders", profile.decoded),
    ]
    out = stdout()
    timed = [(name, f"{seconds:.2f} s", f"{seconds / finished.seconds:.0%}") for name, seconds in rows]
    out.print(table(timed, ("where the time went", "", "of the run"), right=("", "of the run")))
    out.print(profile.verdict(finished.seconds), markup=False)
