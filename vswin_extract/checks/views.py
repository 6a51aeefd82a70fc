"""Checks of what an output shows twice: the group of each video, and the rows of linked files in an index.

Groups may be links to anything, and their datasets may show anything. Nothing is read through them before it is known
where it comes from.
"""

import math
import os
from collections.abc import Iterator

import h5py
from h5py import h5d, h5g, h5l, h5o, h5p

from vswin_extract.errors import first_line
from vswin_extract.store.features import FeatureFile
from vswin_extract.store.hdf5 import READ_ERRORS, Problem
from vswin_extract.store.schema import GROUPED, VIEWED
from vswin_extract.store.structure import Found, Unsound, check_dataset, look_into, open_group, open_member

MOST_FOLDERS = 4096
"""Groups that a group below /videos is in, at most."""


def check_views(features: FeatureFile) -> Iterator[Problem]:
    """Yield the views below /videos that do not show the rows of their video. Files of very many videos have none."""
    file = features.file
    root = file["videos"].id
    if len(features) > GROUPED and not root.get_num_objs():
        return
    names = _viewed(features)
    found = look_into(file.id, features.crops)
    folders: dict[str, h5g.GroupID] = {"": root}
    for video_id, video in features.items():
        try:
            group = _open_folder(folders, video_id, found)
        except (Unsound, *READ_ERRORS) as error:
            yield Problem(f"/videos/{video_id}", first_line(error))
            continue
        for source, name in names.items():
            try:
                _check_view(open_member(group, name, found), source, features, video.rows, found)
            except (Unsound, *READ_ERRORS) as error:
                yield Problem(f"/videos/{video_id}/{name}", first_line(error))


def check_group_links(features: FeatureFile) -> Iterator[Problem]:
    """Yield the links below /videos that no video needs, also in groups that are no video's. No link is followed.
    Whether the group of each video is what it must be is known to `check_views`, and of an index to `check_index`."""
    ids, links = {"/".join(_parts(video_id)) for video_id in features}, {*map(os.fsencode, features.linked_as)}
    views = len(_viewed(features))
    root, found = features.file["videos"].id, look_into(features.file.id)
    waiting, seen = [("", root)], {h5o.get_info(root).addr}
    while waiting:
        path, group = waiting.pop()
        try:
            if path in ids and group.get_num_objs() == views:  # check_views has looked at each
                continue
            for key in group:
                place = f"{path}/{os.fsdecode(key)}".lstrip("/")
                link = group.links.get_info(key)
                if link.type != h5l.TYPE_HARD:
                    if place not in ids or (links and not _is_declared(group, key, place, links)):
                        yield Problem(f"/videos/{place}", "is a link")
                elif link.u not in seen and h5o.get_info(group, key).type == h5o.TYPE_GROUP:
                    seen.add(link.u)
                    if place.count("/") > MOST_FOLDERS:
                        raise Unsound(f"has groups within more than {MOST_FOLDERS} others")
                    waiting.append((place, open_group(group, os.fsdecode(key), found)))
        except (Unsound, *READ_ERRORS) as error:
            yield Problem(f"/videos/{path}", first_line(error))


def _is_declared(group: h5g.GroupID, key: bytes, place: str, links: set[bytes]) -> bool:
    """True if a link of an index leads to the group of the same name in a linked file."""
    if group.links.get_info(key).type != h5l.TYPE_EXTERNAL:
        return False
    file, shown = group.links.get_val(key)
    return file in links and _parts(os.fsdecode(shown)) == ["videos", *_parts(place)]


def _viewed(features: FeatureFile) -> dict[str, str]:
    """Return the datasets that the group of a video shows, and what they are called there."""
    return {**{name: name for name in features.names}, **{f"clips/{name}": name for name in VIEWED}}


def _open_folder(folders: dict[str, h5g.GroupID], path: str, found: Found) -> h5g.GroupID:
    """Return a group below /videos, and remember the groups that it is in. Raises Unsound for a link on the way."""
    parts = _parts(path)
    group, place = folders[""], ""
    for number, part in enumerate(parts, 1):
        place = f"{place}/{part}"
        if place in folders:
            group = folders[place]
            continue
        group = open_group(group, part, found)
        if number < len(parts):
            folders[place] = group
    return group


def _parts(path: str) -> list[str]:
    """Return the names of a path, as HDF5 reads it."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _check_view(view: object, source: str, features: FeatureFile, rows: slice, found: Found) -> None:
    """Raise Unsound unless a dataset shows these rows of a dataset of the same file."""
    dataset = features.file[source]
    shape = (rows.stop - rows.start, *dataset.shape[1:])
    if not isinstance(view, h5d.DatasetID):
        raise Unsound("is not a dataset")
    creation = view.get_create_plist()
    if creation.get_layout() == h5d.VIRTUAL:
        _check_mapping(creation, source, rows, shape)
        if view.shape != shape:
            raise Unsound("is missing or of another shape")
    elif check_dataset(view, source, found) != shape:  # other programs copy what is virtual
        raise Unsound("is missing or of another shape")
    elif any(h5py.Dataset(view)[row].tobytes() != dataset[rows.start + row].tobytes() for row in {0, shape[0] - 1}):
        raise Unsound(f"shows other rows than those from {rows.start} on")


def _check_mapping(creation: h5p.PropDCID, source: str, rows: slice, shape: tuple[int, ...]) -> None:
    """Raise Unsound unless a virtual dataset shows these rows of a dataset of the same file."""
    if creation.get_virtual_count() != 1:
        raise Unsound("shows several datasets")
    file, shown = (os.fsdecode(name) for name in (creation.get_virtual_filename(0), creation.get_virtual_dsetname(0)))
    if file != "." or shown.lstrip("/") != source:
        raise Unsound(f"shows {shown} of {'this' if file == '.' else 'another'} file")
    for space, first in ((creation.get_virtual_srcspace(0), rows.start), (creation.get_virtual_vspace(0), 0)):
        corner = (first, *(0 for _ in shape[1:]))
        last = tuple(begin + length - 1 for begin, length in zip(corner, shape, strict=True))
        if space.get_select_bounds() != (corner, last) or space.get_select_npoints() != math.prod(shape):
            raise Unsound(f"shows other rows than those from {rows.start} on")


def check_index(index: FeatureFile, linked: FeatureFile, number: int) -> Iterator[Problem]:
    """Yield the videos of a linked file, the `number`th of an index, whose rows or group are not those of that file."""
    counts = index.file["linked/videos"][:]
    begin = int(counts[:number].sum())
    names = _viewed(index)
    link, grouped = index.linked_as[number], bool(linked.file["videos"].id.get_num_objs())
    folders: dict[str, h5g.GroupID] = {"": index.file["videos"].id}
    found = look_into(index.file.id)
    for video_id in list(index)[begin : begin + int(counts[number])]:
        if video_id not in linked or len(linked[video_id]) != len(index[video_id]):
            yield Problem("/videos_table", f"lacks the video {video_id}, or has other clips of it")
            return
        for name in names:
            rows, own = (_ends(file, name, video_id) for file in (index, linked))
            if rows != own:
                yield Problem(f"/{name}", f"is shown by the index as other rows for {video_id}")
        try:
            if grouped and _link_of(folders, video_id, found) != (os.fsencode(link), b"/videos/" + video_id.encode()):
                yield Problem(f"/videos/{video_id}", "is not what the index shows as its group")
        except (Unsound, *READ_ERRORS) as error:
            yield Problem(f"/videos/{video_id}", first_line(error))


def _ends(features: FeatureFile, name: str, video_id: str) -> list[bytes]:
    """Return the first and the last row of a video: the rows of an index are in few ranges."""
    rows = features[video_id].rows
    return [features.file[name][row].tobytes() for row in (rows.start, rows.stop - 1)]


def _link_of(folders: dict[str, h5g.GroupID], path: str, found: Found) -> tuple[bytes, bytes]:
    """Return the file and the path that an external link below /videos names. Raises Unsound if it is none."""
    folder, _, name = path.rpartition("/")
    group, key = _open_folder(folders, folder, found), name.encode()
    if not group.links.exists(key) or group.links.get_info(key).type != h5l.TYPE_EXTERNAL:
        raise Unsound("is missing")
    return group.links.get_val(key)  # type: ignore[no-any-return]
