"""What a packet says about itself in its first bytes: can decoding begin at it, and does another frame need it?

The key frame flag of a container is no answer: containers also set it where frames that are shown later still refer to
frames before (open groups of pictures, intra refresh). The rules are those of the codecs' standards:

    H.264   ITU-T H.264, 7.4.1: nal_unit_type 5 is an IDR picture; a picture with nal_ref_idc 0 is not referred to.
            D.2.8: frames that are shown after a recovery point are exact
    HEVC    ITU-T H.265, 7.4.2.2: types 19 and 20 are IDR pictures, 21 is CRA. Frames that are decoded and shown after
            these refer to nothing before. Even types below 15 are not referred to within their temporal sub-layer
    VP8     RFC 6386, 9.1: frame tag
    VP9     VP9 bitstream specification, 6.2: uncompressed header
    AV1     AV1 bitstream specification, 5.5 and 5.9: a temporal unit that begins with a sequence header, and shows a
            key frame
"""

import re
from collections.abc import Callable, Iterator

INTRA_CODECS = frozenset(
    ("mjpeg", "prores", "dnxhd", "rawvideo", "v210", "huffyuv", "ffvhuff", "utvideo", "jpeg2000", "cfhd")
)
"""Codecs each of whose frames is coded alone."""


ENTRY, UNUSED, PARAMETERS, HIDDEN, JOINED, LAYER = 1, 2, 4, 8, 16, 32
"""What a packet says, as bits of a number. ENTRY: decoding can begin here, and every frame that is decoded and shown
after it is the same as in a pass from the beginning. UNUSED: no other frame refers to its frame. PARAMETERS: it brings
parameter sets. HIDDEN: it shows no frame. JOINED: two streams are joined here. The temporal sub-layer of HEVC is
counted in units of LAYER."""

PacketReader = Callable[[memoryview], tuple[int, bytes]]
"""Takes a packet; returns what it says, and its parameter sets."""
START_CODE = re.compile(re.escape(b"\0\0\1"))
SLICES_H264 = frozenset(first for first in range(256) if first & 31 in (1, 2, 5))
SLICES_HEVC = frozenset(first for first in range(256) if first >> 1 & 63 < 32)
"""First bytes of units that hold a part of a picture."""
SLICE_HEADER = 2
"""Bytes of such a unit that are read."""


def packet_reader(codec: str, extradata: bytes) -> PacketReader | None:
    """Return the reader of a codec, by FFmpeg's name of it; None for a codec that is not known here.

    `extradata`: of the stream. It says how H.264 and HEVC separate the units of a packet.
    """
    if codec in INTRA_CODECS:
        return lambda packet: (ENTRY | UNUSED, b"")
    if codec == "h264":
        length = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        return lambda packet: read_h264(units(packet, length, SLICES_H264))
    if codec == "hevc":
        length = (extradata[21] & 3) + 1 if len(extradata) > 22 and extradata[0] == 1 else 0
        return lambda packet: read_hevc(units(packet, length, SLICES_HEVC))
    return {"vp8": read_vp8, "vp9": read_vp9, "av1": read_av1}.get(codec)


def units(packet: memoryview, length: int, slices: frozenset[int]) -> Iterator[memoryview]:
    """Yield the units (NAL) of a packet. Before each there are `length` bytes that give its length, or a start code
    where that is 0. Units that begin with one of the bytes `slices` are cut off after their header: where they end need
    not be known."""
    if length:
        at = 0
        while at + length < len(packet):
            size = int.from_bytes(packet[at : at + length], "big")
            at += length
            yield packet[at : at + size]
            at += size
        return
    code = START_CODE.search(packet)
    while code is not None:
        at = code.end()
        if at < len(packet) and packet[at] in slices:
            yield packet[at : at + SLICE_HEADER]
            code = START_CODE.search(packet, at)
        else:
            code = START_CODE.search(packet, at)
            unit = bytes(packet[at : code.start() if code else len(packet)])
            yield memoryview(unit.rstrip(b"\0"))


def read_h264(units: Iterator[memoryview]) -> tuple[int, bytes]:
    """Read units up to the first slice."""
    says, sets = 0, b""
    for unit in units:
        if not unit:
            break
        kind = unit[0] & 31
        if kind == 6 and recovers_at_once(unit):
            says |= ENTRY
        elif kind in (7, 8, 13, 15):
            says, sets = says | PARAMETERS, sets + unit
        elif kind == 5:
            return says | ENTRY, sets
        elif kind in (1, 2):
            return says if unit[0] & 96 else says | UNUSED, sets
    return says | HIDDEN, sets


def recovers_at_once(unit: memoryview) -> bool:
    """Return True if supplemental information (SEI) of H.264 says that decoding from this picture on is exact: a
    recovery point with recovery_frame_cnt 0 and exact_match_flag 1."""
    at = 1
    while at + 2 < len(unit):
        kind = size = 0
        while at < len(unit) - 1 and unit[at] == 255:
            kind, at = kind + 255, at + 1
        kind, at = kind + unit[at], at + 1
        while at < len(unit) - 1 and unit[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + unit[at], at + 1
        if kind == 6:
            return at < len(unit) and unit[at] >= 192  # two bits: the number 0 as an Exp-Golomb code, and the flag
        at += size
    return False


def read_hevc(units: Iterator[memoryview]) -> tuple[int, bytes]:
    """Read units of the base layer up to the first slice."""
    says, sets = 0, b""
    for unit in units:
        if len(unit) < 2:
            break
        kind, layer, sublayer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3, (unit[1] & 7) - 1
        if layer:
            continue
        if kind in (32, 33, 34):
            says, sets = says | PARAMETERS, sets + unit
        elif kind in (16, 17, 18, 36, 37):  # the stream is joined here, and frames that follow may not decode
            return says | JOINED, sets
        elif kind in (19, 20, 21):
            return says | ENTRY, sets
        elif kind < 32:
            unused = UNUSED if kind < 15 and kind % 2 == 0 else 0
            return says | unused | LAYER * max(0, sublayer), sets
    return says | HIDDEN, sets


def read_vp8(packet: memoryview) -> tuple[int, bytes]:
    if not packet or not packet[0] & 16:
        return HIDDEN, b""
    return 0 if packet[0] & 1 else ENTRY, b""


def read_vp9(packet: memoryview) -> tuple[int, bytes]:
    if not packet or packet[0] >> 6 != 2:
        return HIDDEN, b""
    bits = packet[0] << 8 | (packet[1] if len(packet) > 1 else 0)
    at = 11 if bits >> 12 & 3 == 3 else 12  # behind the marker and the profile; profile 3 has a bit more
    exists, inter, shown = (bits >> at - 1 - place & 1 for place in range(3))
    if not (exists or shown or packet[-1] & 224 == 192):  # an index at the end says that more frames follow
        return HIDDEN, b""
    return ENTRY if shown and not (exists or inter) else 0, b""


def read_av1(packet: memoryview) -> tuple[int, bytes]:
    """Read the units (OBU) of a temporal unit up to its first frame."""
    at, says, sets = 0, 0, b""
    while at < len(packet):
        header, kind = packet[at], packet[at] >> 3 & 15
        at += 2 if header & 4 else 1
        size, at = _leb128(packet, at) if header & 2 else (len(packet) - at, at)
        if kind == 1:
            says, sets = PARAMETERS, bytes(packet[at : at + size])
        elif kind in (3, 6) and at < len(packet):
            exists, frame, shown = packet[at] >> 7, packet[at] >> 5 & 3, packet[at] >> 4 & 1
            return says | ENTRY if sets and shown and not (exists or frame) else says, sets
        at += size
    return HIDDEN, sets


def _leb128(packet: memoryview, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for place in range(8):
        if at >= len(packet):
            break
        value |= (packet[at] & 127) << 7 * place
        at += 1
        if not packet[at - 1] & 128:
            break
    return value, at
