"""NumPy archives as tables: members are mapped where they are stored plainly, streamed where they are compressed."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

from .errors import ShapeError
from .tables import Column
from .variables import Arrays

_LOCAL_HEADER = 30  # bytes before name and extra field; their lengths are its last two 16-bit words
_SKIP = 2**22


@dataclass(slots=True)
class _Member:
    """One array of the archive: where its numbers begin, and, of a compressed one, a stream that has come to a row."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int
    stream: Any = None
    row: int = 0

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:]))


class NpzTable:
    """An ``.npz`` of numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
        self._members = {info.filename.removesuffix(".npy"): self._member(info) for info in self._zip.infolist()}
        self.columns = {name: Column(m.shape, m.dtype) for name, m in self._members.items()}
        self.description = None

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        return {name: self._read(name, self._members[name], rows) for name in names}

    def close(self) -> None:
        self._zip.close()

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        with self._zip.open(info) as stream:
            version = npy.read_magic(stream)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            return _Member(info, shape, fortran, dtype, stream.tell())

    def _read(self, name: str, member: _Member, rows: slice) -> np.ndarray:
        if member.info.compress_type == zipfile.ZIP_STORED:
            return self._mapped(member)[rows].copy()
        if member.fortran and len(member.shape) > 1:
            raise ShapeError(
                f"`{name}` of {self._path} is compressed and in Fortran order, so its rows cannot be streamed: "
                "save it by `numpy.savez`, or in C order by `numpy.ascontiguousarray`"
            )
        return self._streamed(member, rows)

    def _mapped(self, member: _Member) -> np.ndarray:
        """The whole array, mapped anew for every read so that its pages go with the result."""
        with self._path.open("rb") as file:
            file.seek(member.info.header_offset + _LOCAL_HEADER - 4)
            name, extra = struct.unpack("<HH", file.read(4))
        offset = member.info.header_offset + _LOCAL_HEADER + name + extra + member.begin
        order: Literal["C", "F"] = "F" if member.fortran else "C"
        return np.memmap(self._path, member.dtype, mode="r", offset=offset, shape=member.shape, order=order)

    def _streamed(self, member: _Member, rows: slice) -> np.ndarray:
        if member.stream is None or rows.start < member.row:
            member.stream, member.row = self._zip.open(member.info), 0
            member.stream.read(member.begin)
        left = (rows.start - member.row) * member.row_bytes
        while left > 0:
            left -= len(_exactly(member.stream, min(left, _SKIP)))
        member.row = rows.stop
        count = rows.stop - rows.start
        content = _exactly(member.stream, count * member.row_bytes)
        return np.frombuffer(content, member.dtype).reshape(count, *member.shape[1:])


def _exactly(stream: Any, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it ends before its arrays do")
    return content
