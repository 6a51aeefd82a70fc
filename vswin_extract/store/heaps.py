"""What HDF5 would follow without a doubt, read plainly before it does: how long the texts of attributes are, the
collections that texts are in, and the mappings of virtual datasets.

All as "HDF5 File Format Specification Version 4.0" describes it: headers of objects in section IV.A.1, the kinds of
messages in them in IV.A.2, collections ("global heap") in III.E, mappings ("global heap block for virtual datasets") in
III.F, and the selections of rows in them in appendix D.
"""

import operator
import os
import struct
from collections.abc import Iterable, Iterator

import h5py
import numpy as np
from h5py import h5o, h5t

SPACE, LAYOUT, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 0x01, 0x08, 0x0C, 0x10, 0x15
"""Kinds of messages in the header of an object."""
HEADS = {(True, 0): struct.Struct("<BHB"), (True, 4): struct.Struct("<BHBxx"), (False, 0): struct.Struct("<HHBxxx")}
"""What a message begins with: its kind, its bytes, its flags. By the format, and a flag of the header."""
VIRTUAL = 3
"""The class of a layout whose rows are in other datasets."""
MOST_HEADER = 1 << 20
"""Bytes of the header of an object, at most."""
MOST_HEAP = 8 << 20
"""Bytes of a collection of texts, at most. HDF5 makes those of 4 kB, or of one text."""
MOST_MAPPINGS = 64 << 20
"""Bytes of a collection of mappings, at most. HDF5 makes those of 4 kB, or of one dataset, with 100 bytes for each
range of rows."""
MOST_AXES, MOST_ROWS = 32, 1 << 62
"""What HDF5 can have at most."""
KEPT = 4
"""Collections of mappings that are kept, since the next dataset mostly has its mapping in the same one."""
UNDEFINED = b"\xff" * 8
"""An address that leads nowhere."""
HYPERSLABS, ALL = 2, 3
"""Kinds of selections."""

Collections = dict[int, tuple[bytes, dict[int, int]]]
"""Collections of mappings by address: the bytes of each, and where in it each object begins."""


def text_lengths(owner: h5py.HLObject) -> dict[bytes, int]:
    """Return how many bytes the text of each attribute has, by what refers to it; of other attributes any number. HDF5
    would first take as much memory as it says, up to 4 GB. Nothing if the attributes are not in the owner's
    header, or if it or their texts are damaged."""
    file = owner.file
    if file.id.get_create_plist().get_sizes() != (8, 8):
        return {}
    lengths: dict[bytes, int] = {}
    heaps: set[int] = set()
    try:
        for kind, shared, data in _messages(file.id.get_vfd_handle(), file.userblock_size, h5o.get_info(owner.id).addr):
            if (kind == ATTRIBUTE_INFO and UNDEFINED not in data) or (kind == ATTRIBUTE and shared):
                return {}
            if kind == ATTRIBUTE:
                version, flags, *sizes = struct.unpack_from("<BBHHH", data)
                if version == 1:
                    sizes = [-(-size // 8) * 8 for size in sizes]
                elif flags:  # its type or its shape is kept elsewhere, as this package never does
                    return {}
                begin = 9 if version == 3 else 8
                name, rest = data[begin : begin + sizes[0]].rstrip(b"\0"), data[begin + sum(sizes) :]
                lengths[name] = max(lengths.get(name, 0), int.from_bytes(rest[:4], "little"))
                if data[begin + sizes[0]] & 15 == h5t.VLEN and rest[:4] != b"\0" * 4:
                    heaps.add(int.from_bytes(rest[4:12], "little"))
        size = os.fstat(file.id.get_vfd_handle()).st_size
        check_heaps(file.id.get_vfd_handle(), file.userblock_size, heaps, size)
    except (struct.error, IndexError, OverflowError, ValueError):  # damaged: no text of it is read
        return {}
    return lengths


def check_heaps(descriptor: int, base: int, addresses: Iterable[int], most: int) -> None:
    """Raise ValueError if HDF5 would never come to the end of a collection of texts at one of these addresses, or if
    all have more bytes than `most`."""
    for address in addresses:
        data = _read_collection(descriptor, base, address, min(most, MOST_HEAP))
        most -= len(data)
        _find_objects(data)


def check_mappings(descriptor: int, base: int, address: int, collections: Collections) -> None:
    """Raise ValueError if the object at `address` is a virtual dataset whose mappings are not as HDF5 writes them: a
    single block of rows of each source. HDF5 decodes them before it compares their checksum, and writes past its
    memory if they have more than 32 axes. `collections`: those that were read before; more are added."""
    try:
        messages = [*_messages(descriptor, base, address)]
        layouts = [(shared, data) for kind, shared, data in messages if kind == LAYOUT and data[0] > 2]
        if not [1 for shared, data in layouts if shared or data[1] == VIRTUAL]:
            return
        axes = {MOST_AXES + 1 if shared else data[1] for kind, shared, data in messages if kind == SPACE}
        if len(layouts) > 1 or layouts[0][0] or len(axes) != 1 or not 1 <= max(axes) <= MOST_AXES:
            raise ValueError("the header of a virtual dataset is damaged")
        where, index = struct.unpack_from("<QI", layouts[0][1], 2)
        if where.to_bytes(8, "little") == UNDEFINED:  # it shows nothing
            return
        if where not in collections:
            if len(collections) == KEPT:
                collections.clear()
            data = _read_collection(descriptor, base, where, MOST_MAPPINGS)
            places = {int.from_bytes(data[place : place + 2], "little"): place for place in _find_objects(data)}
            collections[where] = data, places
        data, places = collections[where]
        place = places[index] if index else 0
        size = int.from_bytes(data[place + 8 : place + 16], "little")
        _check_block(data[place + 16 : place + 16 + size], max(axes))
    except (struct.error, IndexError, KeyError, OverflowError) as error:
        raise ValueError("the mappings of a virtual dataset are damaged") from error


def _check_block(block: bytes, axes: int) -> None:
    version, entries = struct.unpack_from("<BQ", block)
    at, end = 9, len(block) - 4  # the checksum
    while entries and at < end:
        at = block.index(b"\0", block.index(b"\0", at) + 1) + 1  # after the file and the dataset
        at = _selection_end(block, _selection_end(block, at, axes), axes)
        entries -= 1
    if version or entries or at != end:
        raise ValueError("the mappings of a virtual dataset are damaged")


def _selection_end(block: bytes, at: int, axes: int) -> int:
    """Return where a selection ends that begins at `at`. Raises ValueError unless it is everything, or one block."""
    kind, version = struct.unpack_from("<II", block, at)
    if (kind, version) == (ALL, 1):
        return at + 16
    if (kind, version) == (HYPERSLABS, 1):  # the first and the last corner of each block
        found, blocks = struct.unpack_from("<II", block, at + 16)
        if found == axes and blocks == 1:
            corners = struct.unpack_from(f"<{2 * axes}I", block, at + 24)
            if all(map(operator.le, corners[:axes], corners[axes:])):
                return at + 24 + 8 * axes
    elif (kind, version) == (HYPERSLABS, 2):  # for rows beyond the first 2^32
        # for each axis the first row, the step, how many blocks, and how many rows a block has
        flags, found = struct.unpack_from("<B4xI", block, at + 8)
        if found == axes and flags == 1:
            numbers = struct.unpack_from(f"<{4 * axes}Q", block, at + 17)
            ends = map(operator.add, numbers[::4], numbers[3::4])
            if min(numbers[1::4]) and set(numbers[2::4]) == {1} and min(numbers[3::4]) and max(ends) < MOST_ROWS:
                return at + 17 + 32 * axes
    raise ValueError("a virtual dataset shows other rows than one block of each source")


def _read_collection(descriptor: int, base: int, address: int, most: int) -> bytes:
    head = os.pread(descriptor, 16, base + address)
    size = int.from_bytes(head[8:], "little")
    if head[:4] != b"GCOL" or size > most:
        raise ValueError("texts or mappings are not where the file says")
    data = os.pread(descriptor, size, base + address)
    if len(data) < size:
        raise ValueError("texts or mappings are not where the file says")
    return data


def _find_objects(collection: bytes) -> list[int]:
    """Return where the objects of a collection begin. It is a list of them; each says where the next one begins. Raises
    ValueError unless they fill it: HDF5 might never come to its end."""
    words = np.frombuffer(collection, "<u8", len(collection) // 8)
    sizes = words[1:]
    free = words[:-1] & np.uint64(0xFFFF) == 0  # the rest of the collection, with its own header
    aligned = np.where(sizes & np.uint64(7), 0, sizes // 8)
    steps = np.where(free, aligned, 2 + (np.minimum(sizes, len(collection)) + np.uint64(7)) // 8).tolist()
    at, places = 2, []
    while at < len(steps):
        if not steps[at] or at + steps[at] > len(words):
            raise ValueError("a collection of texts or mappings has no end")
        places.append(8 * at)
        at += steps[at]
    return places


def _messages(descriptor: int, base: int, address: int) -> Iterator[tuple[int, bool, bytes]]:
    """Yield the messages of an object's header: the kind of each, true if it is only a reference to a message
    elsewhere, and its bytes. Raises ValueError, struct.error and OverflowError if it is no such header."""
    start = os.pread(descriptor, 64, base + address).ljust(64, b"\0")
    newer, flags = start[:4] == b"OHDR", 0
    if newer:
        flags = start[5]
        first, width = 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16), 1 << (flags & 3)
        blocks = [(address + first + width, int.from_bytes(start[first : first + width], "little"))]
    else:
        blocks = [(address + 16, int.from_bytes(start[8:12], "little"))]
    head = HEADS[newer, flags & 4]
    left = MOST_HEADER
    for place, size in blocks:  # the list grows in the loop
        left -= size
        if size < 0 or left < 0:
            raise ValueError("a header of an object is too large")
        block, at = os.pread(descriptor, size, base + place), 0
        while at + head.size <= len(block):
            kind, length, state = head.unpack_from(block, at)
            data = block[at + head.size : at + head.size + length]
            at += head.size + length
            yield kind, bool(state & 2), data
            if kind == CONTINUATION:
                where, size = struct.unpack("<QQ", data[:16])
                blocks.append((where + 4, size - 8) if newer else (where, size))
