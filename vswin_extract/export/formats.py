"""The files of other projects. Each function writes the given videos into a folder that is there."""

import contextlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vswin_extract.errors import needs
from vswin_extract.export.guarded import GuardedWriter
from vswin_extract.store.features import VideoFeatures


@dataclass(frozen=True)
class Item:
    """A video to be written: `values` (T, …) float32, `times` (T, 2) in seconds. `name`: of its files. `clips`: True if
    each row is a clip, False if rows are resampled. `suffix`: between the name and the ending of a file of features."""

    name: str
    video: VideoFeatures
    values: NDArray[np.float32]
    times: NDArray[np.float64]
    clips: bool
    suffix: str = ""


def write_npy(folder: Path, items: Iterable[Item]) -> None:
    for item in items:
        _save(_file(folder, f"{item.name}{item.suffix}.npy"), item.values)


def write_npy_and_times(folder: Path, items: Iterable[Item]) -> None:
    """Write times into a folder of their own: many loaders take every .npy file of a folder for features."""
    for item in items:
        _save(_file(folder, f"{item.name}{item.suffix}.npy"), item.values)
        _save(_file(folder, f"times/{item.name}.npy"), item.times)


def write_npz(folder: Path, items: Iterable[Item], key: str = "features") -> None:
    for item in items:
        _save_all(_file(folder, f"{item.name}{item.suffix}.npz"), {key: item.values})


def write_npz_and_times(folder: Path, items: Iterable[Item], key: str = "features") -> None:
    for item in items:
        _save_all(_file(folder, f"{item.name}{item.suffix}.npz"), {key: item.values, "times": item.times})


def write_csv(folder: Path, items: Iterable[Item]) -> None:
    """Write a line of names and then a line for each row, with the digits that float32 needs."""
    for item in items:
        head = ",".join(f"f{channel}" for channel in range(item.values.shape[1]))
        _write_table(_file(folder, f"{item.name}{item.suffix}.csv"), head, item.values, "%.9g")
        _write_table(_file(folder, f"times/{item.name}.csv"), "start,end", item.times, "%.17g")


def write_hdf5(folder: Path, items: Iterable[Item]) -> None:
    with GuardedWriter(folder / "features.h5") as file:
        for item in items:
            file.write(item.name, item.values)


def write_clip_retrieval(folder: Path, items: Iterable[Item], rows: int, rows_per_file: int = 200_000) -> None:
    """Write `rows` rows in all, in pairs of files. image_path is no file's name, because the server opens images."""
    arrow, parquet = _arrow()
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    digits = len(str((rows - 1) // rows_per_file))  # readers take the files in the order of their names
    for part, (values, times, names) in enumerate(_parts(items, rows_per_file)):
        _save(folder / "img_emb" / f"img_emb_{part:0{digits}}.npy", values)
        parts = list(zip(names, times.tolist(), strict=True))
        columns = {
            "image_path": [f"{name}#t={start:.3f},{end:.3f}" for name, (start, end) in parts],  # W3C Media Fragments
            "caption": [f"{name}, {start:.3f} to {end:.3f} s" for name, (start, end) in parts],
            "video": names,
            "start": times[:, 0],
            "end": times[:, 1],
        }
        parquet.write_table(arrow.table(columns), folder / "metadata" / f"metadata_{part:0{digits}}.parquet")


def _parts(items: Iterable[Item], size: int) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float64], list[str]]]:
    """Yield `size` rows of many videos at a time: embeddings (size, C), seconds (size, 2), and the names of videos."""
    values: list[NDArray[np.float16]] = []
    times: list[NDArray[np.float64]] = []
    names: list[str] = []
    for item in items:
        taken = 0
        while taken < len(item.values):
            end = min(len(item.values), taken + size - len(names))
            values.append(item.values[taken:end].astype(np.float16))
            times.append(item.times[taken:end])
            names += [item.name] * (end - taken)
            taken = end
            if len(names) == size:
                yield np.concatenate(values), np.concatenate(times), names
                values, times, names = [], [], []
    if names:
        yield np.concatenate(values), np.concatenate(times), names


def write_webdataset(
    folder: Path, items: Iterable[Item], shard_videos: int = 10_000, shard_bytes: int = 1 << 30
) -> None:
    """Write tar files, each of which ends at so many videos or bytes. Samples are named by numbers, since a webdataset
    takes a name up to its first dot for the key."""
    with contextlib.ExitStack() as stack:
        shard: tarfile.TarFile | None = None
        shards = samples = 0
        for number, item in enumerate(items):
            if shard is None or samples == shard_videos or shard.offset >= shard_bytes:
                stack.close()
                shard = stack.enter_context(tarfile.open(folder / f"shard-{shards:06}.tar", "w"))
                shards, samples = shards + 1, 0
            facts = {"name": item.name, **item.video.info}
            if facts["end"] == float("inf"):  # a whole video. A column of numbers has no null at first
                facts["end"] = facts["start"] + facts["duration"]
            for kind, content in (
                ("features.npy", _npy(item.values)), ("times.npy", _npy(item.times)),
                ("json", json.dumps(facts, allow_nan=False).encode()),
            ):  # fmt: skip
                member = tarfile.TarInfo(f"{number:08}.{kind}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
            samples += 1


def write_parquet(folder: Path, items: Iterable[Item], group_rows: int = 10_000) -> None:
    """Write one Parquet file, about `group_rows` rows at a time."""
    arrow, parquet = _arrow()
    waiting: list[Any] = []
    with contextlib.ExitStack() as stack:
        writer = None
        for item in items:
            waiting.append(_table(arrow, item))
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(folder / "features.parquet", waiting[0].schema))
            if sum(map(len, waiting)) >= group_rows:
                writer.write_table(arrow.concat_tables(waiting))
                waiting = []
        if writer is not None and waiting:
            writer.write_table(arrow.concat_tables(waiting))


def _table(arrow: Any, item: Item) -> Any:
    """Return a table with a row for each clip. Resampled rows have no frames."""
    count, channels = item.values.shape
    info = item.video.info
    columns = {
        "id": arrow.array([item.video.id] * count),
        "row": np.arange(count, dtype=np.int32),
        "start": item.times[:, 0],
        "end": item.times[:, 1],
        "fps": np.full(count, info["fps"], np.float64),
        "status": arrow.array([info["status"]] * count),
    }
    if item.clips:
        frames = item.video.frames[:]
        columns |= {"first_frame": frames[:, 0], "end_frame": frames[:, 1], "valid": item.video.valid[:]}
    columns["feature"] = arrow.FixedSizeListArray.from_arrays(arrow.array(item.values.ravel()), channels)
    return arrow.table(columns)


def _arrow() -> tuple[Any, Any]:
    with needs("pyarrow", "export", "this format needs pyarrow"):
        import pyarrow
        from pyarrow import parquet
    return pyarrow, parquet


def _save(path: Path, values: NDArray[Any]) -> None:
    """Write a .npy file. Of a file, np.save would write the array by C, whose errors do not say that a disk is full."""
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), values)


def _save_all(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def _write_table(path: Path, head: str, values: NDArray[Any], number: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{head}\n")
        np.savetxt(file, values, number, ",")


def _npy(values: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _file(folder: Path, name: str) -> Path:
    """Return the path of a file of a video. `check_names` has found that no other has its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
