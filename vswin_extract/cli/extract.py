"""`vswin extract`, also installed as `vswin-extract`."""

import logging
import os
import re
import shlex
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vswin_extract.cli.command import ExampleCommand, command
from vswin_extract.cli.config import write_config
from vswin_extract.cli.console import PrintableFormatter, note, say, stderr
from vswin_extract.cli.download import fetch_weights
from vswin_extract.cli.exit import EXIT_CODES, reports_errors
from vswin_extract.cli.extract_options import (
    clip_options,
    input_options,
    main_options,
    model_options,
    output_options,
    pixel_options,
    run_options,
)
from vswin_extract.cli.options import Several, version_option
from vswin_extract.cli.origins import by_environment, origins
from vswin_extract.cli.results import show_profile, show_shard, show_summary, show_survey
from vswin_extract.cli.signals import Interrupted, StopSignals
from vswin_extract.formatting import plural, printable
from vswin_extract.system import keep_freed_memory, require_address_space

if TYPE_CHECKING:
    from rich.console import Console

    from vswin_extract.cli.progress import QuietProgress
    from vswin_extract.job.events import Finished, ShardDone
    from vswin_extract.job.job import Job

FOR_PYTORCH = 1200 << 20
"""Bytes of address space without which PyTorch, its threads and the smallest model end in errors of many kinds."""
STAGE_WORD = re.compile(r"[1-4](,[1-4])*|all")
ABOUT_NANO = "nano is the small bundled model, for trying things out; --weights t-k400 downloads a full-size one"
NOTEBOOK = "JPY_PARENT_PID"
"""The variable that Jupyter sets for its kernels, and the commands that they start."""
ORDER = "Options come from the command line, else from variables as VSWIN_EXTRACT_CLIP_LEN, else from --config."
OTHER = 4
"""The exit code of `vswin check` and `vswin weights verify` alone."""
LAST = "the output is the last argument: vswin-extract VIDEOS... OUT.h5"
MEANT = {
    **dict.fromkeys(("-o", "--output", "--out"), LAST),
    **dict.fromkeys(("-i", "--input", "--inputs", "--videos"), "videos need no option: vswin-extract VIDEOS... OUT.h5"),
    **dict.fromkeys(("--model", "--checkpoint", "--ckpt", "--pretrained", "-m"), "--weights"),
    **dict.fromkeys(("--fp16", "--half"), "--precision fp16"),
    "--bf16": "--precision bf16",
    "--fp32": "--precision fp32",
    **dict.fromkeys(("--gpu", "--gpus", "--cuda"), "--device cuda"),
    **dict.fromkeys(("--num-workers", "--num_workers", "-j"), "--workers"),
    **dict.fromkeys(("--batch_size", "--batch", "-b"), "--batch-size"),
    **dict.fromkeys(("--frames", "--num-frames", "--clip-length", "--clip_len", "--window"), "--clip-len"),
    **dict.fromkeys(("--step", "--sampling-rate", "--frame-stride"), "--frame-interval"),
    "--resume": "the same command again continues a run that was stopped",
    **dict.fromkeys(("--force", "-f"), "--overwrite"),
    **dict.fromkeys(("--layer", "--layers", "--stages", "--feature"), "--stage"),
}
"""Words of other tools, and what they mean here."""


class ExtractCommand(ExampleCommand):
    """`vswin-extract`, which says the command that was meant by the name of another one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not os.path.exists(args[0]) and not ctx.resilient_parsing and (words := meant_command(args)):
            ctx.fail(f"vswin-extract extracts features of videos; did you mean: {printable(shlex.join(words))}")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(ORDER)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items() if code != OTHER])


def meant_command(words: list[str]) -> list[str]:
    """Return the command that was meant by words that begin with the name of a command; [] if they do not."""
    from vswin_extract.cli import ALIASES, COMMANDS

    name, *rest = words
    if name == "help":
        return ["vswin", *rest[:1], "--help"] if rest else ["vswin-extract", "--help"]
    if name == "version":
        return ["vswin-extract", "--version"]
    return ["vswin", ALIASES.get(name, name), *rest] if name in (*COMMANDS, *ALIASES) else []


@command(
    "vswin-extract videos/ out.h5 --weights t-k400 --stage 4",
    "vswin-extract a.mp4 out.h5 --stride 16",
    "vswin-extract s3://bucket/videos/ out.h5 --device cuda:all",
    cls=ExtractCommand,
    meant=MEANT,
    epilog=f"{ORDER}\n\n\b\nExit codes:\n"
    + "\n".join(f"  {code:<5}{text}" for code, text in EXIT_CODES.items() if code != OTHER),
)
@click.argument("inputs", cls=Several, nargs=-1, metavar="VIDEOS...", type=click.Path())
@click.argument("output", metavar="OUT.h5", type=click.Path())
@main_options
@output_options
@clip_options
@pixel_options
@input_options
@model_options
@run_options
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
    context = click.get_current_context()
    require_address_space(FOR_PYTORCH, "PyTorch")
    if verbose:
        logger = logging.getLogger("vswin_extract")
        logger.setLevel(logging.DEBUG)
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter())
        logger.addHandler(handler)
    job = make_job(inputs, output, shard=find_shard(shard, quiet), **options)
    if job.engine == "local":  # with Ray, each actor gets them on its own host
        check_before_download(job)
        fetch_weights(job.weights, job.offline, quiet)

    from vswin_extract.job.events import ShardDone

    if dry_run:
        from vswin_extract.run.survey import survey

        found = survey(job)
        show_survey(found)
        sys.exit(3 if found.unreadable else 0)
    console = stderr()
    if not quiet and (elsewhere := origins(context)):
        note(f"some options come from {elsewhere}")
    chose_weights = context.get_parameter_source("weights") != ParameterSource.DEFAULT
    keep_freed_memory()
    finished = follow(job, console, quiet, verbose, grace, about_nano=not chose_weights)
    if (why := write_config(context, finished.output)) and not quiet:
        note(why)
    if not quiet:
        if isinstance(finished, ShardDone):
            show_shard(finished, job.layout)
        else:
            show_summary(finished)
    if profile:
        show_profile(finished)
    sys.exit(3 if finished.failed else 0)


by_environment(extract, "VSWIN_EXTRACT")


def find_shard(shard: str, quiet: bool) -> str:
    """Return what --shard means: for `auto` in a task of a Slurm array the task's shard, else "none"."""
    from vswin_extract.run.slurm import own_shard

    if shard != "auto":
        return shard
    task, names = own_shard(os.environ) or (None, "")
    if task is None:
        return "none"
    if not quiet:
        click.echo(f"note: shard {task}, by {names}; --shard none extracts everything", err=True)
    return str(task)


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
    """Return the job that a command line asks for. Raises UsageError."""
    from pathlib import Path

    from vswin_extract.errors import UsageError
    from vswin_extract.store.hdf5 import SUFFIXES, output_path
    from vswin_extract.video.remote import is_remote, without_secrets
    from vswin_extract.video.videos import find_videos, read_paths

    check_stage_words(stages, inputs, output)
    if not inputs and manifest is None and os.path.exists(output) and Path(output).suffix.lower() not in SUFFIXES:
        raise UsageError(f"the last argument is the file to write: vswin-extract {output} out.h5")
    is_h5 = [Path(path).suffix.lower() in SUFFIXES for path in (*inputs[:1], output)]
    if is_h5 == [True, False] and os.path.exists(output):
        words = shlex.join([output, *inputs[1:], inputs[0]])
        raise UsageError(f"the last argument is the file to write: vswin-extract {words}")
    if is_remote(output):
        raise UsageError(
            f"the last argument is the file to write, on this machine, as out.h5, not {without_secrets(output)}"
        )
    file = output_path(output)
    listed = read_paths(sys.stdin.buffer if sys.stdin else ()) if "-" in inputs else []
    videos = find_videos([path for path in inputs if path != "-"], manifest, listed, note)

    from vswin_extract.job.job import Job, parse_fps  # imports torch, which takes a second
    from vswin_extract.job.shard import parse_shard
    from vswin_extract.network.variants import parse_stages

    return Job(
        videos=videos,
        output=file,
        stages=parse_stages(stages),
        fps=parse_fps(fps),
        variant=variant and variant.lower(),
        shard=None if shard == "none" else parse_shard(shard),
        storage=None if storage is None else Path(os.path.realpath(storage)),
        **options,
    )


def check_before_download(job: "Job") -> None:
    """Raise DeviceError, UsageError or OutputError where the device or the output of a job cannot be used: a download
    of weights may take minutes."""
    from vswin_extract.backbone import find_device, find_devices
    from vswin_extract.run.run import check_target

    for device in find_devices(job.device):
        find_device(device)
    check_target(job)


def check_stage_words(stages: tuple[int, ...], inputs: tuple[str, ...], output: str) -> None:
    """Raise UsageError where a word after a stage was meant as another stage, as in --stage 3 4."""
    from vswin_extract.errors import UsageError

    lost = [word for word in inputs if STAGE_WORD.fullmatch(word) and not os.path.exists(word)]
    lost += [output] if STAGE_WORD.fullmatch(output) else []
    if stages and lost:
        wanted = "all" if "all" in lost else ",".join(dict.fromkeys([*map(str, stages), *",".join(lost).split(",")]))
        raise UsageError(f"{lost[-1]} is not read as a stage: give several stages in one word, --stage {wanted}")


def follow(
    job: "Job", console: "Console", quiet: bool, verbose: bool, grace: float, about_nano: bool
) -> "Finished | ShardDone":
    """Run the job and show its progress: a live display on a terminal, lines elsewhere. Exits if it is stopped."""
    from vswin_extract.cli.progress import LiveProgress, LogProgress, NotebookProgress, QuietProgress
    from vswin_extract.job.events import Finished, ShardDone, Started
    from vswin_extract.run.run import run

    live = sys.stderr.isatty() and not console.is_dumb_terminal  # FORCE_COLOR makes no terminal
    on_terminal = NotebookProgress if NOTEBOOK in os.environ else LiveProgress
    progress = QuietProgress(console) if quiet else (on_terminal if live else LogProgress)(console, verbose)
    try:
        with progress, StopSignals(grace, progress.say) as signals, closing(run(job, signals.stopping)) as events:
            for event in events:
                progress.show(event)
                if isinstance(event, Started) and event.model == "nano" and about_nano:
                    progress.say(ABOUT_NANO)
                if isinstance(event, Finished | ShardDone):
                    return event
    except Interrupted:
        console.print("stopped at once; the videos in flight will be extracted again")
    say(console, f"stopped: {_done(job, progress)}; the same command continues")
    if signals.stuck:
        os._exit(signals.code)
    sys.exit(signals.code)


def _done(job: "Job", progress: "QuietProgress") -> str:
    """Return how much a stopped run has done, and where that is kept."""
    from vswin_extract.journal.directory import journal_directory

    parts = journal_directory(job.output, job.storage)
    if not progress.total:
        return "nothing was begun"
    part = progress.clips / progress.expected if progress.expected else 1.0
    share = f" ({part:.0%} of the clips of this run)" if part < 0.995 else ""  # `expected` is an estimate
    kept = f", kept in {printable(str(parts))}" if parts.is_dir() else ""
    are = "is" if progress.total == 1 else "are"
    return f"{progress.videos} of {plural(progress.total, 'video')} {are} done{share}{kept}"
