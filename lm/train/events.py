"""TensorBoard event files, written without TensorFlow or the `tensorboard` package.

An event file is a sequence of TFRecords, each holding one protobuf `Event`:

    record = uint64 length | uint32 masked_crc32c(length) | payload | uint32 masked_crc32c(payload)

Formats: tensorflow/core/lib/io/record_writer.h (framing), tensorflow/core/util/event.proto and
tensorflow/core/framework/summary.proto (messages; only the fields below are written).
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from lm.errors import LmError
from lm.storage import is_remote, join, make_folder, write_atomic

_file_numbers = itertools.count()  # two files of one process, opened in the same second, keep apart


class EventWriter:
    """Writes scalars as TensorBoard event files in a folder.

    Events are held in memory until `flush`. Locally a flush appends to this writer's one file;
    an object store has no append, so there every flush puts one more small file, and
    TensorBoard reads the files of a folder one after the other.
    """

    def __init__(self, folder: str, first_step: int = 0):
        """Open a writer whose events start at `first_step`.

        A resumed run passes the step it continues from plus one: TensorBoard then forgets what
        earlier files say about that step and later ones.

        Raises:
          LmError: the folder cannot be created or written.
        """
        make_folder(folder)
        self._folder = folder
        self._path: str | None = None
        self._pending: list[bytes] = []
        if first_step > 0:
            session_start = _varint_field(1, 1)  # SessionLog.status = START
            self._add(first_step, _bytes_field(7, session_start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Queue `{tag: value}` at a step; NaN and infinities are kept."""
        summary = b"".join(_value(tag, _float_field(2, value)) for tag, value in values.items())
        if summary:
            self._add(step, _bytes_field(5, summary))

    def flush(self) -> None:
        """Write what is queued.

        Raises:
          LmError: the file cannot be written; the events stay queued.
        """
        if not self._pending:
            return
        new_file = self._path is None or is_remote(self._path)
        path = join(self._folder, _file_name()) if new_file else self._path
        header = _event(0, _bytes_field(3, b"brain.Event:2")) if new_file else b""
        payload = header + b"".join(self._pending)
        if is_remote(path):
            write_atomic(path, payload)
        else:
            try:
                with open(path, "ab") as file:
                    file.write(payload)
            except OSError as error:
                raise LmError(f'cannot write "{path}": {error.strerror or error}.') from error
        self._path = path
        self._pending.clear()

    def close(self) -> None:
        """Write what is queued; nothing stays open between flushes."""
        self.flush()

    def _add(self, step: int, what: bytes) -> None:
        self._pending.append(_event(step, what))


def _file_name() -> str:
    # TensorBoard takes any name with "tfevents" in it and reads them in the order of their names.
    moment = f"{int(time.time()):010d}.{next(_file_numbers):06d}"
    return f"events.out.tfevents.{moment}.{socket.gethostname()}.{os.getpid()}"


def _event(step: int, what: bytes) -> bytes:
    """Return one framed Event: wall_time (1), step (2) and one of its `what` fields."""
    payload = struct.pack("<Bd", 1 << 3 | 1, time.time()) + _varint_field(2, step) + what
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload))


def _value(tag: str, content: bytes) -> bytes:
    """Return one Summary.Value (field 1 of Summary) with its tag (1)."""
    return _bytes_field(1, _bytes_field(1, tag.encode()) + content)


# Protobuf's wire format: a key (field number << 3 | wire type), then the content.


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varint_field(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes_field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _float_field(field: int, value: float) -> bytes:
    try:
        packed = struct.pack("<f", value)
    except OverflowError:  # beyond float32
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _varint(field << 3 | 5) + packed


def _crc_table() -> Iterator[int]:
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli, reflected
        yield byte


_CRC_TABLE = tuple(_crc_table())


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes (RFC 3720, appendix B.4); about 5 MB/s, enough for events."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Return TFRecord's checksum: the CRC-32C rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
