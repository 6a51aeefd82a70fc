"""`vswin inspect`: show what is in a file of features."""

from typing import TYPE_CHECKING, Any

import click

from vswin_extract.cli.command import command
from vswin_extract.cli.console import stdout, table
from vswin_extract.cli.exit import reports_errors
from vswin_extract.cli.options import file_argument, follow_option, json_option
from vswin_extract.formatting import human_bytes, plural

if TYPE_CHECKING:
    from vswin_extract.store.features import FeatureFile

SHOWN_VIDEOS = 20
"""Videos and failures that are listed without --all."""


@command("vswin inspect out.h5", "vswin inspect out.h5 --all", "vswin inspect out.h5 --json")
@file_argument
@click.option(
    "--all", "show_all", is_flag=True, help=f"List all videos and failures, not only the first {SHOWN_VIDEOS}."
)
@follow_option
@json_option
@reports_errors
def inspect(file: str, show_all: bool, follow: bool, as_json: bool) -> None:
    """Show what is in a file of features: model, sampling, videos, clips, shapes, sizes, failures."""
    import json

    from vswin_extract.store.features import open_features

    with open_features(file, follow=follow) as features:
        if as_json:
            click.echo(json.dumps(file_facts(features), indent=1, allow_nan=False))
        else:
            show_file(features, file, show_all)


def file_facts(features: "FeatureFile") -> dict[str, Any]:
    """Return everything about a file but its features, as JSON has it."""
    return {
        "attributes": features.info,
        "datasets": {
            name: {"shape": features.file[name].shape, "dtype": str(features.file[name].dtype)}
            for name in features.names
        },
        "clips": features.clips,
        "videos": video_facts(features),
        "failures": features.failures,
    }


def video_facts(features: "FeatureFile") -> list[dict[str, Any]]:
    """Return what the file says of each video. The columns are read at once: one by one, a large file takes minutes."""
    from vswin_extract.store.schema import VIDEO_COLUMNS

    stored = features.tables["videos_table"]
    columns = {name: stored[name][:].tolist() for name in VIDEO_COLUMNS if name in stored}
    return [
        {name: _plain(value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return None if value == float("inf") else value


def short_sha256(sha256: str) -> str:
    """Return the first digits of the recorded hash, with the place of averaged weights in their file."""
    digits, plus, place = sha256.partition("+")
    return f"{digits[:8]}…{plus}{place}"


class Known(dict[str, Any]):
    """What a file says of itself; "?" for what it does not say."""

    def __missing__(self, name: str) -> str:
        return "?"


def run_facts(features: "FeatureFile", path: str) -> list[tuple[str, str]]:
    """Return the names and values of what people want to know about a run."""
    from pathlib import Path

    info = Known(features.info)
    linked = sum(file.stat().st_size for file in features.linked)
    sampling, preprocessing, variant = (Known(info.get(name, {})) for name in ("sampling", "preprocessing", "variant"))
    fps = f" at {sampling['fps']} fps" if sampling.get("fps") else ""
    kept = f", {plural(features.crops, 'crop')} a clip kept" if features.crops else ""
    rows = [
        ("file", f"{path} ({human_bytes(Path(path).stat().st_size)}, schema {info['schema']})"),
        *([("index of", f"{plural(len(features.linked), 'file')}, {human_bytes(linked)}")] if features.linked else ()),
        ("complete", "yes" if info.get("complete") else "no"),
        ("created", info["created"]),
        ("model", f"{info['model']} (variant {variant['name']}, sha256 {short_sha256(str(info['weights_sha256']))})"),
        (
            "clips of",
            f"{sampling['clip_len']} frames, interval {sampling['frame_interval']}, stride {sampling['stride']}{fps}, "
            f"align {sampling['align']}, tail {sampling['tail']}",
        ),
        (
            "pixels",
            f"short side {preprocessing['resize']}, {preprocessing['crop']} crop {preprocessing['size']}{kept}; "
            f"decoder {info['decoder']}",
        ),
        ("computed", f"on {info['device']} in {info['precision']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())),
    ]
    for name in features.names:
        dataset = features.file[name]
        shape = " x ".join(map(str, dataset.shape))
        size = dataset.nbytes if features.linked else dataset.id.get_storage_size()
        rows.append((name, f"{shape} {dataset.dtype}, {human_bytes(size)}"))
    rows.append(("videos", f"{len(features)} with {plural(features.clips, 'clip')}, {len(features.failures)} failed"))
    return rows


def show_file(features: "FeatureFile", path: str, show_all: bool) -> None:
    """Print what is in a file: the run, the videos, the failures."""
    out = stdout()
    out.print(table(run_facts(features, path)))

    stored = features.file["videos_table"]
    shown = len(features) if show_all else SHOWN_VIDEOS
    ids, statuses = stored["id"].asstr()[:shown], stored["status"].asstr()[:shown]
    clips, seconds, rates, widths, heights = (
        stored[name][:shown] for name in ("clips", "duration", "fps", "width", "height")
    )
    if len(features):
        out.print()
        videos = [
            (ids[i], clips[i], f"{seconds[i]:.2f}", f"{rates[i]:.5g}", f"{widths[i]}x{heights[i]}", statuses[i])
            for i in range(len(ids))
        ]
        titles = ("video", "clips", "seconds", "fps", "size", "status")
        out.print(table(videos, titles, right=("clips", "seconds", "fps", "size")))
    if len(features) > shown:
        out.print(f"… and {len(features) - shown} more; --all lists them")
    messages = stored["message"].asstr()[:shown]
    if any(messages):
        out.print()
        out.print(table([(ids[i], messages[i]) for i in range(len(ids)) if messages[i]], ("video", "what is odd")))
    if features.failures:
        out.print()
        failures = [(failure["id"], failure["error"], failure["message"]) for failure in features.failures]
        out.print(table(failures[: None if show_all else SHOWN_VIDEOS], ("failed", "class", "why")))
