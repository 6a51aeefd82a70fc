"""Which videos a run covers, and their ids."""

import os
from pathlib import Path

import pytest
from conftest import ROOT

from vswin_extract.errors import UsageError
from vswin_extract.video.videos import EXTENSIONS, Video, find_videos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a/x.mkv", "a/notes.txt", "c/x.mkv", ".hidden.mp4", "a/UPPER.MP4", "c d/é\n.webm"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def ids(videos: tuple[Video, ...]) -> list[str]:
    return [video.id for video in videos]


def test_a_directory_is_walked_in_order(tree: Path) -> None:
    assert ids(find_videos([tree])) == ["a/UPPER.MP4", "a/x.mkv", "b.mp4", "c/x.mkv", "c d/é\n.webm"]


def test_the_conventions_list_the_endings_of_videos() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text("utf-8")
    listed = page.partition("has one of these extensions: ")[2].partition(". ")[0]
    assert {f".{name}" for name in listed.split()} == EXTENSIONS


def test_links_that_loop_are_walked_once(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    (tree / "self").symlink_to(tree / "self")
    (tree / "again").symlink_to(tree / "c")
    found = ids(find_videos([tree]))
    assert "again/x.mkv" in found
    assert len(found) == 6


def test_names_that_become_one_as_text(tmp_path: Path) -> None:
    (tmp_path / "a\\xff.mp4").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4")).touch()
    with pytest.raises(UsageError, match="id"):
        find_videos([tmp_path])


def test_files_and_several_directories(tree: Path) -> None:
    assert ids(find_videos([tree / "b.mp4", tree / "a"])) == ["b.mp4", "UPPER.MP4", "x.mkv"]
    assert ids(find_videos([tree / "a" / "notes.txt"])) == ["notes.txt"]
    assert ids(find_videos([tree / "b.mp4", tree / "b.mp4"])) == ["b.mp4"]


def test_equal_ids_of_different_videos_are_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"'x.mkv'.*a/x.mkv.*c/x.mkv"):
        find_videos([tree / "a", tree / "c"])


@pytest.mark.parametrize("listed", [["videos/a/x.mkv"], ["./videos/a/x.mkv\n", "\n"], ["../videos/a/x.mkv"]])
def test_a_list_of_paths(listed: list[str]) -> None:
    assert ids(find_videos(listed=listed)) == ["videos/a/x.mkv"]


def test_an_absolute_path_loses_its_slash() -> None:
    (video,) = find_videos(listed=["/data/x.mkv"])
    assert (video.id, video.path) == ("data/x.mkv", Path("/data/x.mkv"))


def test_a_manifest_with_times_as_they_are_printed(tree: Path) -> None:
    manifest = tree.parent / "list.csv"
    manifest.write_text("path,start,end\nvideos/b.mp4,0:04.5,1:02:05\n")
    (video,) = find_videos(manifest=manifest)
    assert (video.start, video.end) == (4.5, 3725.0)


def test_a_manifest(tree: Path) -> None:
    manifest = tree.parent / "list.csv"
    manifest.write_text('path,id,start,end\nvideos/b.mp4,first,0.5,2\nvideos/b.mp4,second,2,\n"videos/a/x.mkv",,,\n')
    assert find_videos(manifest=manifest) == (
        Video("first", tree / "b.mp4", 0.5, 2.0),
        Video("second", tree / "b.mp4", 2.0, None),
        Video("videos/a/x.mkv", tree / "a" / "x.mkv", None, None),
    )
    tabs = tree.parent / "list.tsv"
    tabs.write_text("path\tid\nvideos/b, c.mp4\tx\n")
    assert find_videos(manifest=tabs)[0].path == tree / "b, c.mp4"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("file,id\na,b\n", "path"),
        ("path,label\na,b\n", "path"),
        ("", "path"),
        ("path,start\na,soon\n", "line 2.*soon"),
        ("path,start\na,-1\n", "-1"),
        ("path,start\na,nan\n", "nan"),
        ("path,start,end\na,5,5\n", "end 5.*start 5"),
        ("path\n\n", "no videos"),
        ("path,id\n,b\n", "line 2"),
        ("path\na,b\n", "line 2"),
        ('path\n"a\n', "line"),
        ("path,id\na,x\nb,x\n", "id 'x'"),
        ("path,path\na,b\n", "path"),
        ("path,id\nc\0.mp4,x\n", "id|line"),
        ("path,id\na,../x\n", "id"),
        ("path,id\na,/x\n", "id"),
        ("path,id\na,x//y\n", "id"),
        ("path,id\na,x\nb,x/y\n", "'x'.*'x/y'"),
        ("path,id\na,x\0y\n", "id|line"),
    ],
)
def test_manifests_that_cannot_work(tmp_path: Path, content: str, named: str) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(content)
    with pytest.raises(UsageError, match=named):
        find_videos(manifest=manifest)


def test_inputs_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        find_videos([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="videos"):
        find_videos([tmp_path])
    with pytest.raises(UsageError, match="--manifest"):
        find_videos()
    with pytest.raises(UsageError, match=r"list\.txt"):
        find_videos(manifest=tmp_path / "list.txt")
    with pytest.raises(UsageError, match=r"list\.csv"):
        find_videos(manifest=tmp_path / "list.csv")
