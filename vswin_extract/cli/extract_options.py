"""The options of `vswin extract`, by the headings that --help shows them under."""

import re

import click

from vswin_extract.cli.config import read_config
from vswin_extract.cli.options import (
    Choice,
    Stages,
    device_option,
    ema_option,
    layout_option,
    option,
    overwrite_option,
    together,
    weights_option,
)

MAIN, MODEL, CLIPS, PIXELS, INPUT, OUTPUT, RUN = "Most used", "Model", "Clips", "Pixels", "Input", "Output", "Run"


def parse_number(text: str) -> int | None:
    """Return a whole number, None for `auto`."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a whole number") from None


def parse_bytes(text: str) -> int:
    """Return the bytes of a size like 20GB, 500 MB or 1000, in powers of 1000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size; write it like 10GB or 500MB")
    return int(float(found[1]) * 1000.0 ** " kmgt".index(found[2].lower() or " "))


main_options = together(
    weights_option(
        "The bundled nano; a name from `vswin weights list`, downloaded if it is not here; or a checkpoint file.",
        MAIN,
        default="nano",
        show_default=True,
    ),
    option(
        MAIN,
        "--stage",
        "stages",
        type=Stages(),
        multiple=True,
        metavar="1-4|all",
        callback=lambda context, parameter, values: tuple(stage for stages in values for stage in stages),
        help="Write the map of this stage, per clip: 1 to 3 before patch merging, 4 after the final norm. Several: 3,4 "
        "or all. Repeatable.",
    ),
    option(
        MAIN,
        "--pool",
        type=Choice(["none", "space", "all"]),
        default="none",
        show_default=True,
        help="Stage maps as they are (T',H',W',C), averaged over space (T',C), or over all (C).",
    ),
    option(
        MAIN,
        "--stride",
        type=int,
        metavar="FRAMES",
        help="From the start of a clip to the start of the next.  [default: the clip's span, clip-len x "
        "frame-interval]",
    ),
    device_option(
        "auto, cpu, cuda, cuda:0, mps (not measured); a process each for several: cuda:0,1, cuda:all, cpu:2.",
        MAIN,
    ),
)

output_options = together(
    option(
        OUTPUT,
        "--embedding/--no-embedding",
        default=True,
        show_default=True,
        help="Write the embedding, the mean of stage 4. Without it and --logits, stages after the last one asked "
        "for are not computed.",
    ),
    option(OUTPUT, "--logits", is_flag=True, help="Write the classification head's output, too."),
    option(
        OUTPUT,
        "--dtype",
        type=Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="Type of the features in the file.",
    ),
    option(
        OUTPUT,
        "--compression",
        type=Choice(["none", "lzf", "gzip"]),
        default="none",
        show_default=True,
        help="HDF5 compression of the features.",
    ),
    layout_option(OUTPUT),
    overwrite_option(OUTPUT),
)

clip_options = together(
    option(
        CLIPS, "--clip-len", type=int, metavar="FRAMES", help="Frames of a clip.  [default: the weights' recipe, 32]"
    ),
    option(
        CLIPS,
        "--frame-interval",
        type=int,
        metavar="FRAMES",
        help="From one frame of a clip to the next.  [default: the weights' recipe, 2]",
    ),
    option(
        CLIPS,
        "--fps",
        metavar="RATE",
        help="Resample to this rate by time stamps first, e.g. 15 or 30000/1001; interval and stride then count "
        "resampled frames.",
    ),
    option(
        CLIPS,
        "--align",
        type=Choice(["start", "center"]),
        default="start",
        show_default=True,
        help="Clip k starts at k x stride, or is centred on stride/2 + k x stride.",
    ),
    option(
        CLIPS,
        "--tail",
        type=Choice(["pad", "drop", "shift"]),
        default="pad",
        show_default=True,
        help="Frames after the last whole clip: repeat the last frame, leave them out, or end a last clip on the "
        "last frame.",
    ),
)

pixel_options = together(
    option(
        PIXELS,
        "--size",
        type=int,
        metavar="PIXELS",
        help="Side of the square crop.  [default: the weights' recipe, 224]",
    ),
    option(
        PIXELS,
        "--resize",
        type=int,
        metavar="PIXELS",
        help="Short side before the crop.  [default: the weights' recipe, in proportion to --size]",
    ),
    option(
        PIXELS,
        "--crop",
        type=Choice(["center", "three", "ten"]),
        default="center",
        show_default=True,
        help="One crop; three along the long side; or the ten of torchvision's TenCrop: four corners, the centre, and "
        "the same mirrored (with --resize 256, so that they differ).",
    ),
    option(
        PIXELS,
        "--crop-pool",
        type=Choice(["mean", "none"]),
        default="mean",
        show_default=True,
        help="Average the features of a clip's crops, or keep them: (clips, crops, ...).",
    ),
)

input_options = together(
    option(
        INPUT,
        "--manifest",
        type=click.Path(),
        metavar="FILE",
        help="A .csv or .tsv with the columns path[,id,start,end], times in seconds or as 1:05.3.",
    ),
    option(
        INPUT,
        "--decoder",
        type=Choice(["pyav", "decord"]),
        default="pyav",
        show_default=True,
        help="decord only to reproduce features made with it.",
    ),
    option(
        INPUT,
        "--partial",
        type=Choice(["keep", "fail"]),
        default="keep",
        show_default=True,
        help="A video of which only a part decodes: keep the part, or count it as failed.",
    ),
    option(
        INPUT,
        "--workers",
        default="auto",
        show_default=True,
        metavar="auto|N",
        callback=lambda context, parameter, text: parse_number(text),
        help="Decoder processes of each device; auto: beside a GPU as many as cores, up to 32; on a CPU a quarter of "
        "its cores, at least 2, and more while the network waits for them.",
    ),
    option(
        INPUT,
        "--timeout",
        type=float,
        default=60,
        show_default=True,
        metavar="SECONDS",
        help="Give up on a video after this long without progress.",
    ),
    option(
        INPUT,
        "--cache-dir",
        type=click.Path(),
        metavar="DIR",
        help="Where remote videos are while they are decoded: a local disk.  [default: one for you in $TMPDIR or /tmp]",
    ),
    option(
        INPUT,
        "--cache-size",
        default="10GB",
        show_default=True,
        metavar="SIZE",
        callback=lambda context, parameter, text: parse_bytes(text),
        help="No video is fetched ahead that would make it larger; runs on one machine share it.",
    ),
)

model_options = together(
    option(
        MODEL,
        "--variant",
        metavar="T|S|B|L",
        help="Size of the network, instead of the one that the weights' shapes tell.",
    ),
    ema_option(MODEL),
    option(
        MODEL,
        "--offline",
        is_flag=True,
        help="Never download weights. VSWIN_OFFLINE=1 does the same for every command except `vswin weights pull`.",
    ),
    option(
        MODEL,
        "--precision",
        type=Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="auto: bf16 where the device has instructions for it; else fp32 on the CPU, fp16 on CUDA. mps: fp32.",
    ),
    option(
        MODEL,
        "--compile",
        type=Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Compile the network on CUDA; auto: for 50,000 clips and more. On a CPU it is faster as it is.",
    ),
    option(
        MODEL,
        "--batch-size",
        default="auto",
        show_default=True,
        metavar="auto|CLIPS",
        callback=lambda context, parameter, text: parse_number(text),
        help="Clips computed at once; auto: on CUDA as many as fit into memory, up to 32, else 1.",
    ),
)

run_options = together(
    option(
        RUN,
        "--shard",
        default="auto",
        show_default=True,
        metavar="auto|none|I/N",
        help="Extract part I of N, counted from 0, into OUT.h5.parts; `vswin merge OUT.h5` makes the file of all "
        "parts. auto: in a task of a Slurm array, or one of several tasks of srun, its part of what all of them "
        "extract (an array resubmitted with fewer tasks shares out everything among those); else everything.",
    ),
    option(
        RUN,
        "--storage",
        type=click.Path(),
        metavar="DIR",
        help="Keep unfinished work in this directory, which all hosts share.  [default: beside OUT.h5]",
    ),
    option(
        RUN,
        "--engine",
        type=Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Devices of this machine, or actors on a Ray cluster that this machine is a node of.",
    ),
    option(
        RUN,
        "--ray-address",
        default="auto",
        show_default=True,
        metavar="HOST:PORT",
        help="With --engine ray: the cluster; auto: $RAY_ADDRESS, or the one that runs here.",
    ),
    option(
        RUN,
        "--actors",
        type=int,
        metavar="N",
        help="With --engine ray: a GPU each, or a part of the cores.  [default: as many as there is room for]",
    ),
    option(
        RUN,
        "--config",
        type=click.Path(),
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="Take what the command line and the environment leave open from this file: `stage = [4]`, `videos = "
        '["a.mp4"]`, `output = "out.h5"`, paths from the working directory. A run writes what it used to '
        "OUT.h5.toml.",
    ),
    option(
        RUN,
        "--dry-run",
        is_flag=True,
        help="Count videos, clips and bytes; decode and write nothing. Weights that are not here are downloaded.",
    ),
    option(
        RUN,
        "--grace",
        type=click.FloatRange(min=0),
        default=20,
        show_default=True,
        metavar="SECONDS",
        help="After Ctrl-C, SIGTERM or SIGUSR1: time for the videos in flight to finish.",
    ),
    option(RUN, "--profile", is_flag=True, help="Print where the time went, and what would make the run faster."),
    option(
        RUN,
        "-q",
        "--quiet",
        is_flag=True,
        help="Say nothing but errors, and that it is nano unless --weights says so.",
    ),
    option(
        RUN,
        "-v",
        "--verbose",
        is_flag=True,
        help="Print what happens to each video, and the decoders' own messages.",
    ),
)

NOT_OF_JOB = ("dry_run", "profile", "quiet", "verbose", "grace")
"""Names of the options of `run_options` that are not part of the job."""
