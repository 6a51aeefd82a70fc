"""Shards behind an index: they read as one file, and lost or replaced shards are noticed. Merging in all layouts."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from journals import ARRAYS, ATTRIBUTES, SETTINGS, add, begin, expect_complete, names

from vswin_extract.checks.output import verify_output
from vswin_extract.errors import OutputError, UsageError
from vswin_extract.journal.journal import open_journal
from vswin_extract.journal.merge import merge
from vswin_extract.store import layouts
from vswin_extract.store.features import linked_files, open_features
from vswin_extract.store.schema import Arrays, FileDescription, VideoRecord
from vswin_extract.store.shards import replacing
from vswin_extract.store.write import write_output

COUNT = 22


SMALL = layouts.ShardLimit(videos=5)


def extract(output: Path, layout: layouts.Layout = "sharded", overwrite: bool = False) -> None:
    with open_journal(output, SETTINGS, ARRAYS, overwrite, names(COUNT)) as journal:
        for number in range(COUNT):
            add(journal.writer(), number)
        journal.load()
        journal.publish(names(COUNT), ATTRIBUTES, ["one", "two"], layout, SMALL)


def test_an_index_reads_as_one_file(tmp_path: Path) -> None:
    extract(tmp_path / "out.h5")
    extract(tmp_path / "single.h5", "single")
    expect_complete(tmp_path / "out.h5", COUNT)
    shards = linked_files(tmp_path / "out.h5")
    assert [path.parent.name for path in shards] == ["out.h5.shards"] * 5
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "out.h5.shards", "single.h5"]
    assert sorted(os.listdir(tmp_path / "out.h5.shards")) == [path.name for path in shards]
    with h5py.File(tmp_path / "out.h5") as one, h5py.File(tmp_path / "single.h5") as other:
        found: dict[str, object] = {}
        other.visititems(lambda name, item: found.update({name: item}))
        for name, item in found.items():
            if isinstance(item, h5py.Dataset):
                assert np.array_equal(one[name][()], item[()]), name
        assert dict(one["videos/v/00003.mp4"].attrs) == dict(other["videos/v/00003.mp4"].attrs)
    for shard in shards:  # each is an output of its own
        assert verify_output(shard).problems == ()
    assert sum(len(open_features(shard).failures) for shard in shards) == COUNT // 7


def test_index_and_shards_move_together_and_no_rows_are_invented(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    extract(tmp_path / "here" / "out.h5")
    (tmp_path / "here").rename(tmp_path / "there")
    out = tmp_path / "there" / "out.h5"
    expect_complete(out, COUNT)
    shard = linked_files(out)[2]
    with h5py.File(shard, "r+") as file:
        file["embedding"][1, 3] += 1
    assert [(problem.where, problem.what) for problem in verify_output(out).problems] == [
        (f"{shard.name}/embedding", "has another sha256 than when it was written")
    ]
    shard.rename(tmp_path / "elsewhere.h5")
    with pytest.raises(UsageError, match="00002-"):
        open_features(out)
    shard.write_bytes(linked_files(out)[1].read_bytes())
    with h5py.File(shard, "r+") as file:
        file.attrs["run"] = "another"
    assert "another was written since" in verify_output(out).problems[0].what


def test_overwriting_removes_the_old_shards(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    extract(out)
    before = linked_files(out)
    extract(out, overwrite=True)
    after = linked_files(out)
    assert not set(before) & set(after)
    assert sorted((tmp_path / "out.h5.shards").iterdir()) == after
    extract(out, "single", overwrite=True)
    assert os.listdir(tmp_path) == ["out.h5"]
    expect_complete(out, COUNT)


def test_a_failure_keeps_the_old_output_and_removes_new_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.h5"
    extract(out)
    before = linked_files(out)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layouts, "_write_index", full)
    with pytest.raises(OSError, match="No space"):
        extract(out, overwrite=True)
    assert sorted((tmp_path / "out.h5.shards").iterdir()) == before
    monkeypatch.undo()
    with open_journal(out, SETTINGS, ARRAYS, True, names(COUNT)) as journal:  # nothing was lost
        journal.publish(names(COUNT), ATTRIBUTES, (), "single")
    expect_complete(out, COUNT)


def test_shards_stay_while_their_index_cannot_be_read(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    extract(out)
    shards, index = linked_files(out), out.read_bytes()
    with contextlib.suppress(KeyboardInterrupt), replacing(out, tmp_path / "unfinished"):
        out.write_bytes(b"as if another process had it locked")
        raise KeyboardInterrupt
    out.write_bytes(index)
    assert linked_files(out) == shards
    expect_complete(out, COUNT)


MERGED = {
    **ATTRIBUTES,
    "variant": {"name": "t"},
    "features": {"dtype": "float32", "compression": "none"},
}


def part(path: Path, numbers: range, compression: str = "none", shape: tuple[int, ...] = (8,)) -> Path:
    """Write an output with two clips of each video, whose values tell its number."""
    arrays = Arrays({"stage4": shape}, compression=compression)  # type: ignore[arg-type]
    records = [VideoRecord(f"{number:03}.mp4", f"/{number:03}.mp4", "ok", clips=2, frames=16) for number in numbers]
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    rows = (
        {
            "stage4": np.stack([number + noise, number + 0.5 + noise]),
            "clips/frames": np.array([[0, 8], [8, 16]]),
            "clips/times": np.array([[0, 0.5], [0.5, 1]]),
            "clips/valid": np.full(2, 8),
        }
        for number in numbers
    )
    features = {"dtype": "float32", "compression": compression}
    attributes = {**MERGED, "features": features, "run": f"{path.stem:>032}"}
    write_output(path, rows, records, FileDescription(arrays, attributes))
    return path


def expect_numbers(path: Path, numbers: list[int]) -> None:
    with open_features(path) as features:
        assert list(features) == [f"{number:03}.mp4" for number in numbers]
        first = next(iter(features.values())).stage4[0].mean() - numbers[0]
        for number, video in zip(numbers, features.values(), strict=True):
            assert video.stage4[1].mean() == pytest.approx(number + 0.5 + first, abs=1e-4)
    assert verify_output(path).problems == ()


def test_linking_copies_nothing_and_leaves_out_duplicates(tmp_path: Path) -> None:
    parts = [part(tmp_path / "b.h5", range(0, 30)), part(tmp_path / "a.h5", range(20, 50), shape=(8,))]
    with pytest.raises(OutputError, match=r"020\.mp4"):
        merge(tmp_path / "out.h5", parts, layout="linked")
    merge(tmp_path / "out.h5", parts, layout="linked", on_duplicate="first")
    expect_numbers(tmp_path / "out.h5", list(range(50)))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["stage4"].is_virtual
        assert file["videos/045.mp4/stage4"].file.filename == str(tmp_path / "a.h5")
    merge(tmp_path / "again.h5", [tmp_path / "out.h5"])  # an index is replaced by the files that it links to
    expect_numbers(tmp_path / "again.h5", list(range(50)))
    with h5py.File(tmp_path / "again.h5") as file:
        assert not file["stage4"].is_virtual


def test_a_journal_cannot_be_linked_to(tmp_path: Path) -> None:
    with begin(tmp_path / "a.h5") as journal:
        add(journal.writer(), 0)
    with pytest.raises(UsageError, match=r"a\.h5\.parts is a journal"):
        merge(tmp_path / "out.h5", [tmp_path / "a.h5.parts"], layout="linked", allow_missing=True)
    assert not (tmp_path / "out.h5").exists()


def test_merging_into_shards(tmp_path: Path) -> None:
    parts = [part(tmp_path / "a.h5", range(0, 20, 2)), part(tmp_path / "b.h5", range(1, 20, 2))]
    merge(tmp_path / "out.h5", parts, layout="sharded", shard_limit=SMALL)
    assert len(linked_files(tmp_path / "out.h5")) == 4
    expect_numbers(tmp_path / "out.h5", list(range(20)))


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_rows_are_copied_as_they_are(compression: str, tmp_path: Path) -> None:
    shape = (2, 96, 96, 8)  # large enough that each row is a chunk
    parts = [
        part(tmp_path / "a.h5", range(0, 8, 2), compression, shape),
        part(tmp_path / "b.h5", range(1, 8, 2), compression, shape),
    ]
    merge(tmp_path / "out.h5", parts)
    expect_numbers(tmp_path / "out.h5", list(range(8)))
    with h5py.File(parts[1]) as one, h5py.File(tmp_path / "out.h5") as out:
        assert out["stage4"].compression == compression
        for row in range(2):
            raw = one["stage4"].id.read_direct_chunk((row, 0, 0, 0, 0))
            assert raw == out["stage4"].id.read_direct_chunk((2 + row, 0, 0, 0, 0))
    other = [parts[0], part(tmp_path / "c.h5", range(1, 8, 2), "none", shape)]  # compressed again
    merge(tmp_path / "mixed.h5", other)
    expect_numbers(tmp_path / "mixed.h5", list(range(8)))
    with h5py.File(parts[1], "r+") as file:  # a damaged chunk is not passed on
        rows = file["stage4"][3]
        file["stage4"][3] = rows + 1
    with pytest.raises(OutputError, match="/stage4"):
        merge(tmp_path / "d.h5", parts)
    assert not (tmp_path / "d.h5").exists()


def test_shards_are_bounded_in_bytes_too() -> None:
    arrays = Arrays({"embedding": (10,)})
    record = VideoRecord("a", "a", "ok", clips=10)
    records = [record, replace(record, clips=20), replace(record, clips=100), record, record, record]
    shards = layouts.split(records, arrays, layouts.ShardLimit(nbytes=1000))
    assert [[r.clips for r in shard] for shard in shards] == [[10], [20], [100], [10, 10], [10]]
    assert list(layouts.split([], arrays)) == [[]]
