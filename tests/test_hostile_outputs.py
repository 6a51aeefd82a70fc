"""Outputs that a stranger made: each reading command ends with one line, and nothing of another file gets out."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Run, script
from h5py import h5d, h5p, h5s, h5t, h5z
from outputs import make_embedded, make_output, random_embeddings

from vswin_extract import open_features
from vswin_extract.checks.output import verify_output
from vswin_extract.checks.views import check_views
from vswin_extract.errors import OutputError, UsageError
from vswin_extract.explore.thumbnails import find_video
from vswin_extract.export.export import export
from vswin_extract.journal.merge import merge
from vswin_extract.store.hdf5 import check_output
from vswin_extract.video.sampling import Sampling

SECRET = "the-secret-of-somebody-else-"
Damage = Callable[[h5py.File, Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "out.h5"
    make_output(path, [("a/1.mp4", 40, 8.0), ("a/2.mp4", 41, 8.0)], Sampling(8, 1), failed=["bad.mp4"])
    with h5py.File(path, "r+") as file:
        settings = {"size": 32, "resize": 32, "crop": "center"}
        file.attrs["preprocessing"] = str(settings).replace("'", '"')
    return path


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with files that an output must not show: a text, and features."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "secret.txt").write_text(SECRET * 1000)
    make_embedded(folder / "secret.h5", {f"{SECRET}.mp4": np.full((12, 8), 7.25, np.float32)})
    return folder


def replace(file: h5py.File, name: str, **how: Any) -> h5py.Dataset:
    """Make a dataset again in another way, with the same values unless others are given."""
    values, attributes = file[name][()], dict(file[name].attrs)
    del file[name]
    if not {"data", "shape"} & how.keys():
        how["data"] = values
    made = file.create_dataset(name, **how)
    made.attrs.update(attributes)
    return made


def external(name: str) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        if h5py.check_string_dtype(dtype):
            dtype = np.dtype("S100")
        place = [(os.fspath(secret / "secret.txt"), 0, h5py.h5f.UNLIMITED)]
        replace(file, name, shape=shape, dtype=dtype, external=place)

    return damage


def virtual(name: str, source: str = "embedding") -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        shape = file[name].shape
        layout = h5py.VirtualLayout(shape, file[name].dtype)
        rows = h5py.VirtualSource(os.fspath(secret / "secret.h5"), source, (12, *shape[1:]))
        layout[:12] = rows[: shape[0]]
        del file[name]
        file.create_virtual_dataset(name, layout)

    return damage


def linked(name: str, link: Callable[[Path], Any]) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        del file[name]
        file[name] = link(secret)

    return damage


def outside(name: str) -> Damage:
    return linked(name, lambda secret: h5py.ExternalLink(os.fspath(secret / "secret.h5"), f"/{name}"))


def attribute(name: str, value: Any) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        if name in file.attrs:
            del file.attrs[name]
        file.attrs[name] = value

    return damage


def as_type(name: str, dtype: Any) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        replace(file, name, shape=file[name].shape, dtype=dtype)

    return damage


def rows(name: str, count: int) -> Damage:
    """So many rows, none of which is in the file."""

    def damage(file: h5py.File, secret: Path) -> None:
        shape = (count, *file[name].shape[1:])
        replace(file, name, shape=shape, dtype=file[name].dtype, chunks=(16, *shape[1:]), maxshape=shape)

    return damage


def all_rows(count: int) -> Damage:
    """So many clips, in all datasets alike: of one video."""

    def damage(file: h5py.File, secret: Path) -> None:
        for name in ("embedding", "stage4", "clips/video", "clips/frames", "clips/times", "clips/valid"):
            rows(name, count)(file, secret)
        file["videos_table/clips"][:] = [count - 1, 1]
        file["videos_table/first_clip"][:] = [0, count - 1]

    return damage


def value(name: str, row: int, values: Any) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        file[name][row] = values

    return damage


def text_bomb(file: h5py.File, secret: Path) -> None:
    """A text that all rows refer to, and that is longer in what refers to it."""
    dataset, file.attrs["padding"] = file["videos_table/path"].id, "x" * 60_000
    place = dataset.get_offset()
    file.flush()
    with open(file.filename, "r+b") as raw:
        raw.seek(place)
        raw.write((1 << 31).to_bytes(4, "little"))


def chunk_bomb(file: h5py.File, secret: Path) -> None:
    shape = file["clips/valid"].shape
    replace(file, "clips/valid", shape=shape, dtype="i4", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def filtered(file: h5py.File, secret: Path) -> None:
    """A filter that HDF5 would load a library for."""
    values = file["embedding"][:]
    del file["embedding"]
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_chunk(values.shape)
    creation.set_filter(32015, h5z.FLAG_OPTIONAL, ())
    h5d.create(file.id, b"embedding", h5t.IEEE_F32LE, h5s.create_simple(values.shape), creation)


def many_attributes(file: h5py.File, secret: Path) -> None:
    for number in range(300):
        file.attrs[f"a{number}"] = number


def many_members(file: h5py.File, secret: Path) -> None:
    for number in range(1100):
        file.create_group(f"g{number}")


def group(name: str) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        del file[name]
        file.create_group(name)

    return damage


def cycle(file: h5py.File, secret: Path) -> None:
    del file["clips"]
    file["clips"] = file["/"]


def drop(name: str) -> Damage:
    def damage(file: h5py.File, secret: Path) -> None:
        del file[name]

    return damage


HOSTILE: dict[str, Damage] = {
    "external embedding": external("embedding"),
    "external clips": external("clips/times"),
    "external ids": external("videos_table/id"),
    "external messages": external("videos_table/message"),
    "external failures": external("failures/message"),
    "virtual embedding": virtual("embedding"),
    "virtual times": virtual("clips/times", "clips/times"),
    "link to an embedding": outside("embedding"),
    "link to a table": outside("videos_table"),
    "link to a column": outside("videos_table/path"),
    "link to failures": outside("failures"),
    "link under another name": linked("stage4", lambda secret: h5py.SoftLink("/embedding")),
    "soft column": linked("clips/valid", lambda secret: h5py.SoftLink("/clips/video")),
    "type of text": as_type("embedding", h5py.string_dtype()),
    "type of numbers": as_type("embedding", "f8"),
    "compound": as_type("clips/valid", np.dtype([("a", "i4"), ("b", "i4")])),
    "references": as_type("videos_table/id", h5py.ref_dtype),
    "numbers for texts": as_type("videos_table/path", "i8"),
    "rows in one column": rows("clips/valid", 1 << 40),
    "2^40 clips": all_rows(1 << 40),
    "2^42 clips": all_rows(1 << 42),
    "many clips": all_rows(1 << 20),
    "text bomb": text_bomb,
    "chunk bomb": chunk_bomb,
    "filter": filtered,
    "group": group("embedding"),
    "cycle": cycle,
    "no column": drop("videos_table/fps"),
    "no table": drop("videos_table"),
    "no failures": drop("failures/error"),
    "negative clips": value("videos_table/clips", 0, -1),
    "no clips": value("videos_table/clips", 0, 0),
    "far rows": value("videos_table/first_clip", 1, 1 << 60),
    "NaN": value("videos_table/duration", 0, np.nan),
    "two of one id": value("videos_table/id", 0, "a/2.mp4"),
    "no id": value("videos_table/id", 0, ""),
    "no UTF-8": value("videos_table/id", 0, b"\xff\xfe"),
    "no JSON": attribute("sampling", "{"),
    "deep JSON": attribute("sampling", "[" * 30_000),
    "JSON list": attribute("variant", "[]"),
    "infinite JSON": attribute("preprocessing", '{"size": 1e999}'),
    "long rate": attribute("sampling", '{"clip_len": 8, "frame_interval": 1, "stride": 8, "fps": "1e999999999"}'),
    "negative length": attribute("sampling", '{"clip_len": -8}'),
    "list for a text": attribute("model", ["a", "b"]),
    "number for a text": attribute("model", 7),
    "text for true": attribute("complete", "yes"),
    "many attributes": many_attributes,
    "many members": many_members,
    "newer schema": attribute("schema", "vswin-extract/9"),
    "other schema": attribute("schema", np.void(b"vswin-extract/1")),
}
COMMANDS: dict[str, list[str]] = {
    "inspect": ["inspect", "FILE", "--all"],
    "json": ["inspect", "FILE", "--json"],
    "check": ["check", "FILE"],
    "search": ["search", "FILE", "a/1.mp4", "--html", "NEW.html"],
    "copies": ["search", "FILE", "--duplicates", "--json"],
    "report": ["report", "FILE", "-o", "NEW.html"],
    "plot": ["plot", "FILE", "a/1.mp4", "-o", "NEW.png"],
    "merge": ["merge", "-o", "NEW.h5", "FILE"],
    "link": ["merge", "--link", "-o", "NEW.h5", "FILE"],
    "npy": ["export", "npy", "FILE", "NEW"],
    "webdataset": ["export", "webdataset", "FILE", "NEW"],
}


def make_hostile(sound: Path, folder: Path, secret: Path, kind: str) -> Path:
    path = Path(shutil.copy(sound, folder / ("other_schema.h5" if kind == "other schema" else "hostile.h5")))
    with h5py.File(path, "r+") as file:
        HOSTILE[kind](file, secret)
    return path


def expect_refused(run: Run, path: Path, folder: Path, commands: list[str]) -> None:
    """Each command ends with one line and its exit code, and writes nothing."""
    before = sorted(folder.rglob("*"))
    for command in commands:
        words = [word.replace("FILE", str(path)).replace("NEW", str(folder / "new")) for word in COMMANDS[command]]
        done = run("vswin", *words)
        assert done.returncode == (4 if command == "check" and "schema" not in path.name else 2), (command, done)
        assert done.stderr.count("\n") == 1 or command == "check", (command, done.stderr)
        assert "Traceback" not in done.stderr + done.stdout, command
        assert SECRET not in done.stdout + done.stderr, command
        assert sorted(folder.rglob("*")) == before, command


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_output_is_refused(sound: Path, secret: Path, tmp_path: Path, kind: str) -> None:
    path = make_hostile(sound, tmp_path, secret, kind)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        open_features(path)
    if kind != "other schema":
        assert verify_output(path).problems


def test_commands_show_nothing_of_other_files(run: Run, sound: Path, secret: Path, tmp_path: Path) -> None:
    path = make_hostile(sound, tmp_path, secret, "external messages")
    expect_refused(run, path, tmp_path, ["json", "check", "merge"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_command_refuses_a_hostile_output(run: Run, sound: Path, secret: Path, tmp_path: Path, kind: str) -> None:
    expect_refused(run, make_hostile(sound, tmp_path, secret, kind), tmp_path, list(COMMANDS))


def test_what_other_programs_and_versions_write_is_read(run: Run, sound: Path, tmp_path: Path) -> None:
    """Texts in chunks, compressed, as h5repack makes them; members and attributes that are not known here."""
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    with h5py.File(path, "r+") as file:
        for name in ("videos_table/id", "videos_table/path", "failures/id", "clips/valid", "embedding"):
            replace(
                file,
                name,
                chunks=(1, *file[name].shape[1:]),
                compression="gzip",
                maxshape=(None, *file[name].shape[1:]),
            )
        file["labels"] = np.arange(3)
        file["videos_table/label"] = ["x", "y"]
        file.attrs["mine"] = [1, 2]
        file.attrs["also"] = np.nan
    assert run("vswin", "check", path).returncode == 0
    shown = json.loads(run("vswin", "inspect", path, "--json").stdout)
    assert [video["id"] for video in shown["videos"]] == ["a/1.mp4", "a/2.mp4"]
    assert not {"mine", "also"} & shown["attributes"].keys()
    assert run("vswin", "merge", "-o", tmp_path / "again.h5", path).returncode == 3


def copied(path: Path, new: Path, **how: Any) -> Path:
    """A copy that h5py makes in another format of HDF5."""
    with h5py.File(path) as old, h5py.File(new, "w", **how) as file:
        file.attrs.update(old.attrs)
        for name in old:
            old.copy(name, file)
    return new


def test_what_is_not_read_is_named(run: Run, sound: Path, tmp_path: Path) -> None:
    """Forms of HDF5 that other programs may choose are no sign that an output is not ours."""
    dense = copied(sound, tmp_path / "dense.h5", libver="latest", track_order=True)
    for words, code in (("inspect", 2), ("check", 2), ("search", 2)):
        done = run("vswin", words, dense, *["a/1.mp4"] * (words == "search"))
        assert (done.returncode, "h5repack" in done.stderr, "not written" in done.stderr) == (code, True, False)
    with pytest.raises(OutputError, match="h5repack"):
        check_output(dense, overwrite=True)
    for kind in ("LZF", "compact"):
        path = Path(shutil.copy(sound, tmp_path / f"{kind}.h5"))
        with h5py.File(path, "r+") as file:
            if kind == "LZF":
                replace(file, "videos_table/id", chunks=(2,), compression="lzf")
            else:
                creation = h5p.create(h5p.DATASET_CREATE)
                creation.set_layout(h5d.COMPACT)
                texts = file["videos_table/id"][()]
                del file["videos_table/id"]
                made = h5d.create(
                    file["videos_table"].id, b"id", h5t.py_create(h5py.string_dtype(), logical=True),
                    h5s.create_simple(texts.shape), creation,
                )  # fmt: skip
                h5py.Dataset(made)[...] = texts
        with pytest.raises(UsageError, match=f"(?s){kind}.*h5repack"):
            open_features(path)


def test_check_lists_all_that_is_wrong(run: Run, sound: Path, secret: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    with h5py.File(path, "r+") as file:
        for kind in ("external embedding", "no JSON", "filter", "no column"):
            HOSTILE[kind](file, secret)
    done = run("vswin", "check", path)
    assert done.returncode == 4
    for where in ("/embedding", "/videos_table/fps", "sampling"):
        assert where in done.stdout
    assert "; and 2 more: vswin check" in run("vswin", "inspect", path).stderr


def index_of(folder: Path, *links: str, videos: int = 4) -> Path:
    """An index of sound files in `folder`, which names them in this way instead."""
    path = make_embedded(folder / "out.h5", random_embeddings(0, *[3] * videos, channels=8), layout="sharded",
                         shard_videos=videos // len(links))  # fmt: skip
    with h5py.File(path, "r+") as file:
        old = file["linked/path"].asstr()[:].tolist()
        assert len(old) == len(links)
        names = dict(zip(old, links, strict=True))
        file["linked/path"][:] = links
        for name in ("embedding", "clips/frames", "clips/times", "clips/valid"):
            dataset = file[name]
            layout = h5py.VirtualLayout(dataset.shape, dataset.dtype)
            for source in dataset.virtual_sources():
                begin, end = (corner[0] for corner in source.vspace.get_select_bounds())
                count, row = end - begin + 1, dataset.shape[1:]
                layout[begin : end + 1] = h5py.VirtualSource(
                    names[source.file_name], name, (count, *row), dataset.dtype
                )
            del file[name]
            file.create_virtual_dataset(name, layout)
    for old_name, name in names.items():
        if not Path(folder, name).exists() and "pipe" not in name:
            shutil.copy(folder / old_name, folder / name)
    return path


@pytest.mark.slow
def test_links_out_of_the_directory_need_follow(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "there").mkdir()
    for link in ("../there/a.h5", os.fspath(tmp_path / "there" / "b.h5"), "inside.h5"):
        path = index_of(folder, link)
        if link == "inside.h5":
            (folder / link).rename(tmp_path / "there" / "c.h5")
            (folder / link).symlink_to(tmp_path / "there" / "c.h5")
        with pytest.raises(UsageError, match=r"outside its directory; --follow reads it"):
            open_features(path)
        for arguments in (["inspect", path], ["search", path, "v/0.mp4"], ["merge", "-o", tmp_path / "m.h5", path]):
            assert run("vswin", *arguments).returncode == 2
            assert run("vswin", *arguments, "--follow").returncode == 0
        (tmp_path / "m.h5").unlink()
        assert [run("vswin", "check", path, *more).returncode for more in ((), ("--follow",))] == [4, 4]
        with open_features(path, follow=True) as features:
            assert features["v/3.mp4"].embedding[:].shape == (3, 8)
        export("npy", path, tmp_path / "npy", follow=True)
        shutil.rmtree(tmp_path / "npy")
        path.unlink()


@pytest.mark.slow
def test_merge_says_that_readers_need_follow(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    part = make_embedded(tmp_path / "part.h5", random_embeddings(0, 3, channels=8))
    for output, needed in ((tmp_path / "a" / "out.h5", True), (tmp_path / "out.h5", False)):
        done = run("vswin", "merge", "--link", "-o", output, part)
        assert (done.returncode, "--follow" in done.stderr) == (0, needed), done.stderr
        assert run("vswin", "check", output, *["--follow"] * needed).returncode == 0


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "itself", "index", "pattern", "undeclared", "prefix"])
def test_what_an_index_must_not_link_to(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"pipe": "pipe.h5", "device": "/dev/zero", "directory": "/", "itself": "out.h5", "index": "other.h5",
             "pattern": "a%%.h5", "undeclared": "a.h5", "prefix": "a.h5"}  # fmt: skip
    if kind == "index":
        (tmp_path / "x").mkdir()
        make_embedded(tmp_path / "other.h5", random_embeddings(0, 3, 3, 3, 3, channels=8), layout="sharded")
    if kind == "pipe":
        os.mkfifo(tmp_path / "pipe.h5")
    path = index_of(tmp_path, names[kind])
    if kind == "undeclared":
        make_embedded(tmp_path / "secret.h5", {"x": np.full((12, 8), 7.25, np.float32)})
        with h5py.File(path, "r+") as file:
            virtual("embedding")(file, tmp_path)
    if kind == "prefix":
        monkeypatch.setenv("HDF5_VDS_PREFIX", "/tmp")
    with pytest.raises(UsageError, match=re.escape(str(path))), open_features(path, follow=True) as features:
        np.asarray(features["v/0.mp4"].embedding)
    assert verify_output(path, follow=True).problems
    with contextlib.suppress(UsageError), pytest.raises(UsageError):
        merge(tmp_path / "merged.h5", [path], follow=True)
    assert not (tmp_path / "merged.h5").exists()


@pytest.mark.parametrize(
    "kind",
    ["external embedding", *(pytest.param(name, marks=pytest.mark.slow) for name in
                             ("virtual times", "link to an embedding", "2^40 clips"))],
)  # fmt: skip
def test_linked_files_are_checked_too(run: Run, tmp_path: Path, secret: Path, kind: str) -> None:
    path = index_of(tmp_path, "a.h5", "b.h5")
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        if kind == "2^40 clips":
            rows("embedding", 1 << 40)(file, secret)
        else:
            HOSTILE[kind](file, secret)
    with pytest.raises(UsageError, match=r"b\.h5"), open_features(path) as features:
        np.asarray(features["v/3.mp4"].embedding)
    for arguments in (["search", path, "v/3.mp4"], ["merge", "-o", tmp_path / "m.h5", path]):
        done = run("vswin", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run("vswin", "check", path)
    assert (done.returncode, "b.h5" in done.stdout, SECRET in done.stdout) == (4, True, False)


@pytest.mark.parametrize("kind", ["unfinished", "exchanged", "foreign"])
def test_an_index_shows_no_rows_of_other_files(run: Run, tmp_path: Path, kind: str) -> None:
    """Its tables are its own, and are read without the files that it links to."""
    path = index_of(tmp_path, "a.h5", "b.h5")
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        if kind == "unfinished":
            file.attrs["complete"] = False
        elif kind == "exchanged":
            file.attrs["run"] = "2" * 32
        else:
            file.attrs["schema"] = "another"
    with open_features(path) as features:
        assert (features.info["run"], features.names, features.failures) == ("1" * 32, ["embedding"], [])
        assert features["v/3.mp4"].info["path"] == "/nowhere/v/3.mp4"
        with pytest.raises(UsageError, match=r"b\.h5"):
            np.asarray(features["v/0.mp4"].embedding)
    for words, code in (("inspect", 2), ("search", 2), ("check", 4)):
        assert run("vswin", words, path, *["v/0.mp4"] * (words == "search")).returncode == code


@pytest.mark.parametrize(
    "command",
    ["inspect", *(pytest.param(name, marks=pytest.mark.slow) for name in
                  ("check", "search", "report", "plot", "merge", "export", "into"))],
)  # fmt: skip
def test_a_pipe_instead_of_a_file_does_not_wait(command: str, tmp_path: Path, environment: dict[str, str]) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    pipe, new = str(tmp_path / "pipe.h5"), str(tmp_path / "new")
    more = {"search": ["a"], "report": ["-o", new], "plot": ["a", "-o", f"{new}.png"], "merge": [f"{new}.h5"]}
    words = [command, pipe, *more.get(command, [])]
    if command == "merge":
        words = ["merge", "-o", f"{new}.h5", pipe]
    elif command == "export":
        words = ["export", "npy", pipe, new]
    elif command == "into":
        words = ["merge", pipe, pipe]
    done = subprocess.run([script("vswin"), *words], capture_output=True, text=True, timeout=20, env=environment)
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (2, 1, False)


def test_views_are_not_read_before_it_is_known_what_they_show(
    run: Run, sound: Path, secret: Path, tmp_path: Path
) -> None:
    view = "videos/a/1.mp4/embedding"
    damages: list[Damage] = [
        external(view),
        virtual(view),
        linked(view, lambda secret: h5py.ExternalLink(os.fspath(secret / "secret.h5"), "/embedding")),
        linked("videos/a", lambda secret: h5py.ExternalLink(os.fspath(secret / "secret.h5"), "/")),
        linked("videos/a/1.mp4", lambda secret: h5py.SoftLink("/videos/a/2.mp4")),
    ]
    for damage in damages:
        path = Path(shutil.copy(sound, tmp_path / "out.h5"))
        with h5py.File(path, "r+") as file:
            damage(file, secret)
        assert run("vswin", "inspect", path).returncode == 0  # it reads none
        done = run("vswin", "check", path)
        assert (done.returncode, "/videos/a/1.mp4" in done.stdout, SECRET in done.stdout) == (4, True, False)


@pytest.mark.parametrize("place", ["u", "a/u", "deep/er/u", "bad.mp4", "a/1.mp4/u"])
@pytest.mark.parametrize("what", ["output", "index", "linked"])
def test_links_below_videos_that_no_video_needs_are_problems(
    what: str, place: str, sound: Path, secret: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    index = merge(tmp_path / "index.h5", [path], layout="linked").output
    with h5py.File(path, "r+") as file:
        file["videos/circle/again"] = file["videos"]
        file["videos/a/mine"] = np.zeros(3)  # as other members that this version does not know
    assert verify_output(index).problems == verify_output(path).problems == ()
    with h5py.File(index if what == "index" else path, "r+") as file:
        if what == "index" and place == "a/1.mp4/u":
            del file["videos/a/1.mp4"]  # the group of a video is a link itself
        file[f"videos/{place}"] = h5py.ExternalLink(os.fspath(secret / "secret.h5"), "/")
    checked = verify_output(path if what == "output" else index)
    prefix = "out.h5" if what == "linked" else ""
    assert f"{prefix}/videos/{place}" in [problem.where for problem in checked.problems]
    assert "secret.h5" not in str(checked.problems)


def test_a_video_of_an_index_is_linked_to_its_own_file_only(run: Run, sound: Path, tmp_path: Path) -> None:
    """The linked file has no groups, so no group of the index is needed."""
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    with h5py.File(path, "r+") as file:
        del file["videos"]
        file.create_group("videos")
    index = merge(tmp_path / "index.h5", [path], layout="linked").output
    with h5py.File(index, "r+") as file:
        file["videos/a/1.mp4"] = h5py.ExternalLink("/etc/passwd", "/videos/a/1.mp4")
    done = run("vswin", "check", index)
    assert (done.returncode, "/videos/a/1.mp4" in done.stdout) == (4, True)


def test_few_rows_are_read_to_check_a_view_that_was_copied(sound: Path, tmp_path: Path) -> None:
    """A row between the first and the last one of the video cannot be read, so that reading it is an error."""
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    with h5py.File(path, "r+") as file:
        views = [name for name in ("a/1.mp4", "a/2.mp4") if replace(file, f"videos/{name}/embedding")]
        rows = replace(file, "embedding", chunks=(1, 8), compression="gzip", maxshape=(None, 8))
        chunk = rows.id.get_chunk_info(1)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with open_features(path) as features:
        assert len(features[views[0]]) > 2
        assert [*check_views(features)] == []


@pytest.mark.slow
def test_a_damaged_chunk_is_one_line(run: Run, tmp_path: Path) -> None:
    path = make_output(tmp_path / "out.h5", [("a/1.mp4", 40, 8.0)], Sampling(8, 1), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["embedding"].id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    expect_refused(run, path, tmp_path, ["search", "report", "plot", "merge", "check"])


@pytest.mark.slow
def test_times_and_embeddings_that_are_no_numbers_are_one_line(run: Run, sound: Path, tmp_path: Path) -> None:
    for name in ("clips/times", "embedding"):
        path = Path(shutil.copy(sound, tmp_path / "out.h5"))
        with h5py.File(path, "r+") as file:
            file[name][1] = np.nan
        expect_refused(run, path, tmp_path, ["copies", "search", "report", "plot", "merge", "check"])


@pytest.mark.slow
def test_control_characters_are_not_printed(run: Run, sound: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sound, tmp_path / "out.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["model"] = file.attrs["device"] = "\x1b]0;title\x07"
        for name in ("id", "message", "status"):
            file[f"videos_table/{name}"][0] = "\x1b[31mred\r\n"
        for name in ("id", "message", "error"):
            file[f"failures/{name}"][0] = "\x1b[31mred\r\n"
    for arguments in (["inspect", path], ["check", path], ["search", path, "nothing"]):
        done = run("vswin", *arguments)
        assert not {"\x1b", "\r", "\x07"} & {*(done.stdout + done.stderr)}


def test_pictures_are_of_the_videos_that_were_extracted(tmp_path: Path) -> None:
    """A path in an output may name any file of the user."""
    (tmp_path / "of.mp4").write_bytes(b"video")
    (tmp_path / "of.txt").write_bytes(b"video")
    os.mkfifo(tmp_path / "pipe.mp4")
    path = make_embedded(tmp_path / "out.h5", {"a.mp4": np.ones((2, 8), np.float32)})
    kept = {}
    for name, size in (("of.mp4", 5), ("of.mp4", 6), ("of.txt", 5), ("pipe.mp4", 0), ("http://127.0.0.1/a.mp4", -1)):
        with h5py.File(path, "r+") as file:
            file["videos_table/path"][0] = name if "//" in name else os.fspath(tmp_path / name)
            file["videos_table/size"][0] = size
        with open_features(path) as features:
            kept[name, size] = find_video(features, "a.mp4", None) is not None
    assert [each for each, found in kept.items() if found] == [("of.mp4", 5)]
    for video_id in ("/etc/a.mp4", "../a.mp4"):
        path = make_embedded(tmp_path / "ids.h5", {video_id: np.ones((2, 8), np.float32)})
        with open_features(path) as features:
            assert find_video(features, video_id, tmp_path) is None
        path.unlink()
