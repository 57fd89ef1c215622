"""Reads a cubin: what a launch of its kernels takes from a multiprocessor, and their constants."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Attributes in .nv.info sections.
_KPARAM_INFO = 0x17
_PARAM_CBANK = 0x0A
_REGISTER_COUNT = 0x2F
_VALUES_OF_FORMAT_4 = 0x04
RESERVED_SHARED = 1024  # bytes of each block on sm_90


class Parameter(NamedTuple):
    """Where an argument lies behind `KernelInfo.parameters_at`."""

    offset: int
    size: int


@dataclass(frozen=True)
class KernelInfo:
    """All sizes are in bytes."""

    name: str  # mangled
    registers: int  # of a thread
    shared: int  # static, with what the system reserves; dynamic shared memory starts behind it
    parameters: tuple[Parameter, ...]
    parameters_at: int  # in constant bank 0
    constants: dict[int, bytes]  # by bank; bank 0 without arguments and sizes


class _Section(NamedTuple):
    name: str
    offset: int
    size: int
    info: int


def read_cubin(path: Path) -> dict[str, KernelInfo]:
    """The kernels in a cubin by their mangled names."""
    data = path.read_bytes()
    sections = _sections(data)
    by_name = {section.name: section for section in sections}
    registers = _registers(_content(data, by_name[".nv.info"]))
    kernels = {}
    for section in sections:
        if not section.name.startswith(".text."):
            continue
        name = section.name.removeprefix(".text.")
        parameters, parameters_at = _parameters(_content(data, by_name[f".nv.info.{name}"]))
        shared = by_name.get(f".nv.shared.{name}")
        constants = {}
        for bank in range(8):
            found = by_name.get(f".nv.constant{bank}.{name}") or by_name.get(f".nv.constant{bank}")
            if found:
                constants[bank] = _content(data, found)
        kernels[name] = KernelInfo(
            name,
            registers[section.info & 0xFFFFFF],
            max(RESERVED_SHARED, shared.size if shared else 0),
            parameters,
            parameters_at,
            constants,
        )
    return kernels


def _sections(data: bytes) -> list[_Section]:
    """The section headers of a 64-bit little-endian ELF file."""
    assert data[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file"
    (headers_at,) = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<HHH", data, 58)
    raw = [struct.unpack_from("<IIQQQQIIQQ", data, headers_at + k * size) for k in range(count)]
    names_at = raw[names_index][4]

    def text(at: int) -> str:
        return data[names_at + at : data.index(b"\0", names_at + at)].decode()

    return [_Section(text(fields[0]), fields[4], fields[5], fields[7]) for fields in raw]


def _content(data: bytes, section: _Section) -> bytes:
    return data[section.offset : section.offset + section.size]


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Those with a value of any length, each with its number."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _VALUES_OF_FORMAT_4:  # else `size` is the value
            yield attribute, info[at : at + size]
            at += size


def _registers(info: bytes) -> dict[int, int]:
    """Registers of a thread, by the kernel's number in the symbol table."""
    pairs = (value for attribute, value in _attributes(info) if attribute == _REGISTER_COUNT)
    return dict(struct.unpack("<II", value) for value in pairs)


def _parameters(info: bytes) -> tuple[tuple[Parameter, ...], int]:
    """The arguments in their order, and where they start."""
    found: dict[int, Parameter] = {}
    start = 0
    for attribute, value in _attributes(info):
        if attribute == _KPARAM_INFO:
            _, ordinal, offset, packed = struct.unpack("<IHHI", value)
            found[ordinal] = Parameter(offset, packed >> 18)
        elif attribute == _PARAM_CBANK:
            _, start, _ = struct.unpack("<IHH", value)
    return tuple(found[ordinal] for ordinal in sorted(found)), start
