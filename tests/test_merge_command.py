"""`vswin merge`: which file is written, and which files are never replaced; what tells the user to merge."""

import shlex
from pathlib import Path

import numbered
import pytest
from conftest import Run
from outputs import make_embedded, random_embeddings

from vswin_extract import open_features
from vswin_extract.checks.output import verify_output
from vswin_extract.cli.merge import merge_command


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two outputs of two videos each."""
    made = []
    for number, name in enumerate(("a.h5", "b.h5")):
        videos = {f"{number}{key[2:]}": rows for key, rows in random_embeddings(number, 3, 4).items()}
        made.append(make_embedded(tmp_path / name, videos, run=str(number + 1)))
    return made


def videos_of(path: Path) -> int:
    with open_features(path) as features:
        return len(features)


def test_the_output_is_named_by_an_option(run: Run, parts: list[Path], tmp_path: Path) -> None:
    assert run("vswin", "merge", "-o", tmp_path / "out.h5", *parts).returncode == 0
    assert videos_of(tmp_path / "out.h5") == 4
    assert run("vswin", "merge", tmp_path / "old.h5", *parts).returncode == 0  # the first path, if it is not there
    assert videos_of(tmp_path / "old.h5") == 4
    again = run("vswin", "merge", "-o", tmp_path / "out.h5", parts[0])
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert run("vswin", "merge", "-o", tmp_path / "out.h5", "--overwrite", parts[0]).returncode == 0
    assert videos_of(tmp_path / "out.h5") == 2


@pytest.mark.parametrize("option", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_an_output_that_may_be_meant_as_a_part_is_not_replaced(
    run: Run, parts: list[Path], tmp_path: Path, option: list[str]
) -> None:
    before = parts[0].read_bytes()
    done = run("vswin", "merge", *parts, *option)
    assert done.returncode == 2
    assert f"vswin merge -o OUT.h5 {parts[0]} {parts[1]}" in done.stderr
    same = run("vswin", "merge", "-o", parts[0], *parts, *option)
    assert (same.returncode, str(parts[0]) in same.stderr) == (2, True)
    (tmp_path / "link.h5").symlink_to(parts[0])
    linked = run("vswin", "merge", "-o", tmp_path / "link.h5", *parts, *option)
    assert linked.returncode == 2
    alone = run("vswin", "merge", parts[0], *option)
    assert (alone.returncode, "-o" in alone.stderr) == (2, True)
    assert parts[0].read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["a.h5", "b.h5", "link.h5"]


def test_files_of_an_index_are_parts_too(run: Run, parts: list[Path], tmp_path: Path) -> None:
    assert run("vswin", "merge", "-o", tmp_path / "index.h5", *parts, "--link").returncode == 0
    inside = run("vswin", "merge", "-o", parts[0], tmp_path / "index.h5", "--overwrite")
    assert (inside.returncode, str(parts[0]) in inside.stderr) == (2, True)
    assert run("vswin", "merge", "-o", tmp_path / "sharded.h5", *parts, "--layout", "sharded").returncode == 0
    shards = list((tmp_path / "sharded.h5.shards").iterdir())
    for option in ((), ("--layout", "sharded"), ("--link",)):  # its own shards are copied or linked to, and stay
        own = run("vswin", "merge", "-o", tmp_path / "sharded.h5", *shards, "--overwrite", *option)
        assert own.returncode == 0, own.stderr
        assert all(shard.exists() for shard in shards)
        assert (str(shards[0].name) in own.stderr) == (not option or option[0] == "--layout")  # not linked to now
    assert verify_output(tmp_path / "sharded.h5").problems == ()
    assert verify_output(tmp_path / "index.h5").problems == ()


def test_complete_shards_are_to_be_merged(run: Run, small_weights: Path, tmp_path: Path) -> None:
    """Each command that is printed works as it is."""
    videos, out = tmp_path / "videos", tmp_path / "my out.h5"
    videos.mkdir()
    for number in range(3):
        numbered.write(videos / f"{number}.mp4", 20, first=20 * number)
    shard = ["vswin-extract", videos, out, "--weights", small_weights]
    assert run(*shard, "--shard", "0/2").returncode == 0
    checked = run("vswin", "check", out)
    assert (checked.returncode, "merge" in checked.stdout) == (0, False)
    last = run(*shard, "--shard", "1/2")
    checked = run("vswin", "check", out)
    command = ["vswin", "merge", str(out)]
    assert shlex.join(command) in last.stdout
    assert shlex.join(command) in checked.stdout
    other = run("vswin", "merge", out, make_embedded(tmp_path / "c.h5", random_embeddings(0, 1)))
    assert (other.returncode, f"{out}.parts" in other.stderr) == (2, True)  # the unfinished run may be meant as a part
    assert run(*command).returncode == 0
    assert videos_of(out) == 3


def test_the_command_names_what_is_not_by_default(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert merge_command(out, tmp_path / "out.h5.parts") == ["merge", str(out)]
    stored = tmp_path / "storage" / "out.h5.parts"
    words = merge_command(out, stored, "sharded", overwrite=True)
    assert words == ["merge", "-o", str(out), str(stored), "--layout", "sharded", "--overwrite"]


def test_shards_that_replace_an_output(run: Run, small_weights: Path, tmp_path: Path) -> None:
    video, out, storage = numbered.write(tmp_path / "a.mp4", 20), tmp_path / "out.h5", tmp_path / "storage"
    storage.mkdir()
    extract = ["vswin-extract", video, out, "--weights", small_weights]
    assert run(*extract).returncode == 0
    done = run(*extract, "--stride", 4, "--overwrite", "--shard", "0/1", "--storage", storage, "--layout", "sharded")
    assert done.returncode == 0, done.stderr
    command = shlex.join(["vswin", *merge_command(out, storage / "out.h5.parts", "sharded", overwrite=True)])
    assert command in done.stdout
    assert run(*shlex.split(command)).returncode == 0
    with open_features(out) as features:
        assert features.info["sampling"]["stride"] == 4
        assert len(features.linked) == 1
