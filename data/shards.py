"""Single chunks of a store, straight from its shards to where they are wanted.

Through zarr a chunk costs about 2 ms of event loop and two copies, whatever its size; this is what an epoch consists
of when rows are streamed, and it competes with training for the interpreter. The format is the one `store` writes, Zarr
v3 sharding (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html): chunks one after the
other, each Zstandard and then CRC32C, and at the end an index of (offset, size) per chunk with a CRC32C of its own.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress

from .errors import CorruptStoreError, StoreError
from .store import Damage, damaged

_CODECS = ["bytes", "zstd", "crc32c"]
_INDEX_CODECS = ["bytes", "crc32c"]
_CRC = 4


class ChunkReader:
    """Reads chunks of one array; safe to be used from several threads.

    Args:
        store: Folder of the store.
        name: Path of the array in it, such as ``theta`` or ``context/sd``.

    Raises:
        StoreError: The array is not laid out as `store` does it.
    """

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        described = json.loads((store / name / "zarr.json").read_text())
        sharding = described["codecs"][0]
        inner = sharding["configuration"]
        codecs = [[codec["name"] for codec in inner.get(key, [])] for key in ("codecs", "index_codecs")]
        if sharding["name"] != "sharding_indexed" or codecs != [_CODECS, _INDEX_CODECS]:
            raise StoreError(
                f"the array {store / name} must have the codecs {_CODECS} in shards; got {described['codecs']}"
            )
        self.dtype = np.dtype(described["data_type"])
        self.chunk = tuple(inner["chunk_shape"])
        self._per_shard = described["chunk_grid"]["configuration"]["chunk_shape"][0] // self.chunk[0]
        self._indices: dict[int, np.ndarray] = {}

    def read(self, chunk: int, into: np.ndarray) -> None:
        """Decompress a chunk into a contiguous array of its shape and dtype.

        Raises:
            CorruptStoreError: A checksum does not fit, or the file is missing; names the shard.
        """
        shard, place = divmod(chunk, self._per_shard)
        try:
            offset, size = self._index(shard)[place].tolist()
            decompress(_checked(self._bytes(shard, offset, size)), into)
        except (ValueError, RuntimeError, OSError, OverflowError) as error:
            found = Damage(shard, self.name, str(error))
            raise CorruptStoreError(damaged(self.store, [found])) from error

    def _index(self, shard: int) -> np.ndarray:
        """(offset, size) of every chunk of a shard."""
        if shard not in self._indices:
            length = 16 * self._per_shard + _CRC
            end = os.path.getsize(self._file(shard))
            index = np.frombuffer(_checked(self._bytes(shard, end - length, length)), "<u8")
            self._indices[shard] = index.reshape(-1, 2)
        return self._indices[shard]

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        with self._file(shard).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def _file(self, shard: int) -> Path:
        return self.store / self.name / "c" / "/".join([str(shard), *self._zeros])

    @cached_property
    def _zeros(self) -> list[str]:
        return ["0"] * (len(self.chunk) - 1)


def _checked(data: bytes) -> memoryview:
    """All but the checksum at the end, which must fit."""
    view = memoryview(data)
    found, stored = google_crc32c.value(data[:-_CRC]), int.from_bytes(data[-_CRC:], "little")
    if len(data) <= _CRC or found != stored:
        raise ValueError(f"checksum {found:08x} of {len(data)} bytes, {stored:08x} is stored")
    return view[:-_CRC]
