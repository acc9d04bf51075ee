"""Event files must be what TensorBoard reads: checked by a decoder that shares no code with the writer."""

import math
import os
import struct

import pytest

from lm.errors import LmError
from lm.storage import filesystem
from lm.train import events
from lm.train.events import EventWriter


def crc32c_bitwise(data):
    """CRC-32C by the definition: polynomial division, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
    return crc ^ 0xFFFFFFFF


def unmask(masked):
    rotated = (masked - 0xA282EAD8) % 2**32
    return (rotated << 15 | rotated >> 17) % 2**32


def frames(data):
    """Payloads of TFRecords, with both checksums verified."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        (length_crc,) = struct.unpack_from("<I", data, at + 8)
        payload = data[at + 12 : at + 12 + length]
        (payload_crc,) = struct.unpack_from("<I", data, at + 12 + length)
        assert len(payload) == length
        assert unmask(length_crc) == crc32c_bitwise(data[at : at + 8])
        assert unmask(payload_crc) == crc32c_bitwise(payload)
        yield payload
        at += 16 + length


def message(data):
    """Protobuf fields as {number: [values]}; nested messages stay bytes."""

    def varint():
        nonlocal at
        number, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    fields, at = {}, 0
    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value = varint()
        elif key & 7 == 2:
            size = varint()
            value, at = data[at : at + size], at + size
        else:
            form = {1: "<d", 5: "<f"}[key & 7]
            (value,) = struct.unpack_from(form, data, at)
            at += struct.calcsize(form)
        fields.setdefault(key >> 3, []).append(value)
    return fields


def scalars(payload):
    event = message(payload)
    values = [message(value) for value in message(event[5][0])[1]]
    return event.get(2, [0])[0], {value[1][0].decode(): value[2][0] for value in values}


def only_file(folder):
    (name,) = os.listdir(folder)
    return folder / name


def test_crc32c_matches_the_published_vectors():
    # RFC 3720, appendix B.4, and the customary check value
    assert events.crc32c(b"123456789") == 0xE3069283
    assert events.crc32c(bytes(32)) == 0x8A9136AA
    assert events.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_scalars_come_back_with_step_tag_and_value(tmp_path):
    writer = EventWriter(str(tmp_path))
    writer.scalars(0, {"train/loss": 4.5})
    writer.scalars(300, {"train/loss": 2.25, "train/mfu": 0.5})
    writer.scalars(2**40, {"train/loss": math.nan, "big": 1e300, "small": -1e300})
    writer.close()
    path = only_file(tmp_path)
    assert path.name.startswith("events.out.tfevents.")
    version, *rest = frames(path.read_bytes())
    assert message(version)[3] == [b"brain.Event:2"]
    assert all(message(payload)[1][0] > 1.6e9 for payload in [version, *rest])  # wall_time, seconds since 1970
    assert scalars(rest[0]) == (0, {"train/loss": 4.5})
    assert scalars(rest[1]) == (300, {"train/loss": 2.25, "train/mfu": 0.5})
    step, values = scalars(rest[2])
    assert step == 2**40
    assert math.isnan(values["train/loss"])
    assert values["big"] == math.inf
    assert values["small"] == -math.inf


def test_a_second_flush_appends_to_the_same_file(tmp_path):
    writer = EventWriter(str(tmp_path))
    for step in range(3):
        writer.scalars(step, {"a": step})
        writer.flush()
        writer.flush()
    assert [scalars(payload)[0] for payload in list(frames(only_file(tmp_path).read_bytes()))[1:]] == [0, 1, 2]


def test_two_writers_in_one_second_do_not_share_a_file(tmp_path):
    for _ in range(2):
        writer = EventWriter(str(tmp_path))
        writer.scalars(1, {"a": 1.0})
        writer.close()
    assert len(os.listdir(tmp_path)) == 2


def test_a_resumed_writer_tells_tensorboard_to_forget_the_steps_it_writes_again(tmp_path):
    writer = EventWriter(str(tmp_path), first_step=201)
    writer.scalars(201, {"a": 1.0})
    writer.close()
    start = message(list(frames(only_file(tmp_path).read_bytes()))[1])
    assert start[2] == [201]
    assert message(start[7][0])[1] == [1]  # SessionLog.START


def test_on_an_object_store_every_flush_is_a_whole_file_of_its_own():
    folder = "memory://test-events/run/events"
    writer = EventWriter(folder)
    for step in (1, 2):
        writer.scalars(step, {"a": step})
        writer.flush()
    writer.close()
    store = filesystem(folder)
    files = [list(frames(store.cat_file(path))) for path in sorted(store.ls(folder, detail=False))]
    assert [message(file[0])[3] for file in files] == [[b"brain.Event:2"]] * 2
    assert [[scalars(payload) for payload in file[1:]] for file in files] == [[(1, {"a": 1.0})], [(2, {"a": 2.0})]]


def test_events_that_could_not_be_written_stay_queued(tmp_path, monkeypatch):
    writer = EventWriter(str(tmp_path))
    writer.scalars(1, {"a": 1.0})
    monkeypatch.setattr(writer, "_folder", str(tmp_path / "absent"))
    with pytest.raises(LmError, match="cannot write"):
        writer.flush()
    monkeypatch.undo()
    writer.flush()
    assert scalars(list(frames(only_file(tmp_path).read_bytes()))[1]) == (1, {"a": 1.0})
