"""Fields of protobuf messages as bytes, valid or not, for the makers of corpora beside this file."""


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def fixed32(field, value):
    return varint(field << 3 | 5) + value.to_bytes(4, "little")


def text(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value
