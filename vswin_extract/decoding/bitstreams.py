"""What a packet says about itself in its first bytes: can decoding begin at it, and does another frame need it?

The key frame flag of a container is no answer: containers also set it where frames that are shown later still refer to
frames before (open groups of pictures, intra refresh). The rules are those of the codecs' standards:

    H.264   ITU-T H.264, 7.4.1: nal_unit_type 5 is an IDR picture; a picture with nal_ref_idc 0 is not referred to
    HEVC    ITU-T H.265, 7.4.2.2: types 19 and 20 are IDR pictures, 21 is CRA. Frames that are decoded and shown after
            these refer to nothing before. Even types below 15 are not referred to within their temporal sub-layer
    VP8     RFC 6386, 9.1: frame tag
    VP9     VP9 bitstream specification, 6.2: uncompressed header
    AV1     AV1 bitstream specification, 5.5 and 5.9: a temporal unit that begins with a sequence header, and shows a
            key frame
"""

from collections.abc import Callable, Iterator
from enum import IntFlag

INTRA_CODECS = frozenset(
    ("mjpeg", "prores", "dnxhd", "rawvideo", "v210", "huffyuv", "ffvhuff", "utvideo", "jpeg2000", "cfhd")
)
"""Codecs each of whose frames is coded alone."""


class Says(IntFlag):
    """What a packet says. ENTRY: decoding can begin here, and every frame that is decoded and shown after it is the same
    as in a pass from the beginning. UNUSED: no other frame refers to its frame. PARAMETERS: it brings parameter sets.
    HIDDEN: it shows no frame. The temporal sub-layer of HEVC is counted in units of LAYER."""

    NOTHING = 0
    ENTRY = 1
    UNUSED = 2
    PARAMETERS = 4
    HIDDEN = 8
    LAYER = 16


PacketReader = Callable[[bytes], Says]


def packet_reader(codec: str, extradata: bytes) -> PacketReader | None:
    """Return a function that reads packets of a codec, by FFmpeg's name of it; None for a codec that is not known here.

    `extradata`: of the stream. It says how H.264 and HEVC separate the units of a packet.
    """
    if codec in INTRA_CODECS:
        return lambda packet: Says.ENTRY | Says.UNUSED
    if codec == "h264":
        length = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        return lambda packet: read_h264(units(packet, length))
    if codec == "hevc":
        length = (extradata[21] & 3) + 1 if len(extradata) > 22 and extradata[0] == 1 else 0
        return lambda packet: read_hevc(units(packet, length))
    return {"vp8": read_vp8, "vp9": read_vp9, "av1": read_av1, "libdav1d": read_av1}.get(codec)


def units(packet: bytes, length: int) -> Iterator[bytes]:
    """Yield the first two bytes of each unit (NAL) of a packet, which has `length` bytes of length before each, or start
    codes where that is 0."""
    if length:
        at = 0
        while at + length < len(packet):
            size = int.from_bytes(packet[at : at + length], "big")
            at += length
            yield packet[at : at + 2]
            at += size
        return
    at = packet.find(b"\0\0\1")
    while at >= 0:
        yield packet[at + 3 : at + 5]
        at = packet.find(b"\0\0\1", at + 3)


def read_h264(headers: Iterator[bytes]) -> Says:
    """Read units up to the first slice."""
    says = Says.NOTHING
    for header in headers:
        if not header:
            break
        kind = header[0] & 31
        if kind in (7, 8):
            says |= Says.PARAMETERS
        elif kind == 5:
            return says | Says.ENTRY
        elif kind in (1, 2):
            return says if header[0] & 96 else says | Says.UNUSED
    return says | Says.HIDDEN


def read_hevc(headers: Iterator[bytes]) -> Says:
    """Read units of the base layer up to the first slice."""
    says = Says.NOTHING
    for header in headers:
        if len(header) < 2:
            break
        kind, layer, sublayer = header[0] >> 1 & 63, (header[0] & 1) << 5 | header[1] >> 3, (header[1] & 7) - 1
        if layer:
            continue
        if kind in (32, 33, 34):
            says |= Says.PARAMETERS
        elif kind in (19, 20, 21):
            return says | Says.ENTRY
        elif kind < 32:
            unused = Says.UNUSED if kind < 15 and kind % 2 == 0 else Says.NOTHING
            return Says(says | unused | Says.LAYER * max(0, sublayer))
    return says | Says.HIDDEN


def read_vp8(packet: bytes) -> Says:
    if not packet or not packet[0] & 16:
        return Says.HIDDEN
    return Says.NOTHING if packet[0] & 1 else Says.ENTRY


def read_vp9(packet: bytes) -> Says:
    if not packet or packet[0] >> 6 != 2:
        return Says.HIDDEN
    bits = packet[0] << 8 | (packet[1] if len(packet) > 1 else 0)
    at = 13 if bits >> 12 & 3 == 3 else 12  # behind the marker and the profile; profile 3 has a bit more
    exists, inter, shown = (bits >> at - 1 - place & 1 for place in range(3))
    return Says.ENTRY if shown and not (exists or inter) else Says.NOTHING


def read_av1(packet: bytes) -> Says:
    """Read the units (OBU) of a temporal unit up to its first frame."""
    at, sequence = 0, False
    while at < len(packet):
        header, kind = packet[at], packet[at] >> 3 & 15
        at += 2 if header & 4 else 1
        size, at = _leb128(packet, at) if header & 2 else (len(packet) - at, at)
        if kind == 1:
            sequence = True
        elif kind in (3, 6) and at < len(packet):
            exists, frame, shown = packet[at] >> 7, packet[at] >> 5 & 3, packet[at] >> 4 & 1
            return Says.ENTRY if sequence and shown and not (exists or frame) else Says.NOTHING
        at += size
    return Says.HIDDEN


def _leb128(packet: bytes, at: int) -> tuple[int, int]:
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
