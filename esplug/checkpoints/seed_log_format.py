"""Binary format of the seed log: encodes and decodes its header and its records.

The file is a header followed by one record for each iteration, numbered from 0 without a gap. All numbers are
little-endian.

- The header is one line of UTF-8 JSON without blanks, ``{"format":"esplug-seed-log","version":3,"base":{"name":...,
  "revision":...,"weights_checksum":"16 hex digits"},"master_dtype":...,"run_seed":...,"low_rank":...,
  "settings":{...},"crc":"16 hex digits"}``, and a newline. ``low_rank`` is the rank of the members' noise, or null
  for full-rank noise; versions 1 and 2 do not have it. ``crc`` comes last and is the 8-byte BLAKE2b hash of the
  line's bytes before ``,"crc"``.
- A record is the payload's length (u32), the payload, and the 8-byte BLAKE2b hash of both. The payload is the
  iteration (u64), the checksum of the master weights after it (u64, :func:`esplug.noise.kernels.cpu.checksum`),
  flags (u8: the sum of 1 for mirrored pairs and 2 for momentum), the number of members N (u32), N coefficients
  (float32), and with flag 2 the momentum (float64). Version 1 does not have flag 2.
"""

import json
import re
import struct
from hashlib import blake2b
from pathlib import Path

from esplug.checkpoints.seed_log_records import Base, Header, Recorded, Step
from esplug.errors import UserError

FILE_NAME = "seeds.log"
FORMAT, VERSION = "esplug-seed-log", 3
LINE_START = f'{{"format":"{FORMAT}"'.encode()  # of every seed log

_LENGTH, _FIXED, _MOMENTUM = struct.Struct("<I"), struct.Struct("<QQBI"), struct.Struct("<d")
_MIRRORED_FLAG, _MOMENTUM_FLAG = 1, 2
_HASH_BYTES = 8
_CRC = re.compile(rb',"crc":"([0-9a-f]{16})"\}\n')
_CRC_BYTES = len(',"crc":"0123456789abcdef"}\n')
_MAX_HEADER_BYTES = 2**24


def encode_header(header: Header) -> bytes:
    """Return the header's line. Raises ``ValueError`` if the settings are not JSON."""
    base = header.base
    content = {
        "format": FORMAT,
        "version": VERSION,
        "base": {"name": base.name, "revision": base.revision, "weights_checksum": f"{base.weights_checksum:016x}"},
        "master_dtype": header.master_dtype,
        "run_seed": header.run_seed,
        "low_rank": header.low_rank,
        "settings": header.settings,
    }
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"settings cannot be written as JSON ({error})") from error
    hashed = text.removesuffix("}").encode()
    return hashed + f',"crc":"{_hash(hashed).hex()}"}}\n'.encode()


def _decode_header(path: Path, line: bytes) -> Header:
    damaged = f"{path}: the header is damaged; restore the file from a copy"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
        if line.startswith(LINE_START):
            raise UserError(damaged) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        fault = "not a seed log" if line else "empty"
        raise UserError(f"{path}: {fault}; give a run's {FILE_NAME}, or restore the file from a copy")
    hashed, crc = line[:-_CRC_BYTES], _CRC.fullmatch(line[-_CRC_BYTES:])
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{path}: its format has version {version}, and this esplug reads version {VERSION}; upgrade esplug"
        )
    if crc is None or crc[1].decode() != _hash(hashed).hex():
        raise UserError(damaged)
    try:
        base = content["base"]
        return Header(
            Base(base["name"], base["revision"], int(base["weights_checksum"], 16)),
            content["master_dtype"],
            content["run_seed"],
            content["settings"],
            content["low_rank"] if content["version"] >= 3 else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{damaged} ({error})") from error


def encode_record(step: Step) -> bytes:
    """Return the record of a step."""
    count = len(step.coefficients)
    flags = _MIRRORED_FLAG * step.antithetic + _MOMENTUM_FLAG * bool(step.momentum)
    payload = _FIXED.pack(step.iteration, step.checksum, flags, count) + struct.pack(f"<{count}f", *step.coefficients)
    if step.momentum:
        payload += _MOMENTUM.pack(step.momentum)
    hashed = _LENGTH.pack(len(payload)) + payload
    return hashed + _hash(hashed)


def _decode_record(records: bytes, offset: int) -> tuple[Step | None, int]:
    """Return the step of the record at ``offset`` and the record's end; ``None`` and ``offset`` if it is damaged."""
    end = _record_end(records, offset)
    if end is None or records[end - _HASH_BYTES : end] != _hash(records[offset : end - _HASH_BYTES]):
        return None, offset
    start = offset + _LENGTH.size
    iteration, checksum, flags, count = _FIXED.unpack_from(records, start)
    start += _FIXED.size
    coefficients = struct.unpack_from(f"<{count}f", records, start)
    momentum = _MOMENTUM.unpack_from(records, start + 4 * count)[0] if flags & _MOMENTUM_FLAG else 0.0
    try:
        return Step(iteration, coefficients, bool(flags & _MIRRORED_FLAG), checksum, momentum), end
    except ValueError:
        return None, offset


def _record_end(records: bytes, offset: int) -> int | None:
    """Return where the record at ``offset`` ends, possibly past the file's end; ``None`` if its length is invalid."""
    start = offset + _LENGTH.size
    if start + _FIXED.size > len(records):
        return None
    (length,) = _LENGTH.unpack_from(records, offset)
    *_, flags, count = _FIXED.unpack_from(records, start)
    expected = _FIXED.size + 4 * count + _MOMENTUM.size * bool(flags & _MOMENTUM_FLAG)
    valid = flags <= _MIRRORED_FLAG | _MOMENTUM_FLAG and length == expected
    return start + length + _HASH_BYTES if valid else None


def scan(path: Path, stop: int | None = None) -> tuple[Recorded, int, str | None]:
    """Read a log up to the first damage, and at most ``stop`` iterations.

    Returns:
        The records, the offset at which the last intact record ends, and a description of the damage, if any.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_MAX_HEADER_BYTES)
            header = _decode_header(path, line)
            records = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give a run's {FILE_NAME}") from error
    steps: list[Step] = []
    offset, torn, damage = 0, False, None
    while offset < len(records) and len(steps) != stop:
        step, end = _decode_record(records, offset)
        if step is None and _is_torn(records, offset, steps):
            torn = True
            break
        if step is None or step.iteration != len(steps):
            fault = "is damaged" if step is None else f"is that of iteration {step.iteration}"
            damage = f"the record of iteration {len(steps)}, at byte {len(line) + offset}, {fault}"
            break
        steps.append(step)
        offset = end
    return Recorded(header, steps, torn), len(line) + offset, damage


def count_records(path: Path) -> int:
    """Count a log's records by their lengths, without checking their hashes. A torn last record does not count."""
    with path.open("rb") as file:
        file.readline(_MAX_HEADER_BYTES)
        records = file.read()
    offset = number = 0
    while (end := _record_end(records, offset)) is not None and end <= len(records):
        offset, number = end, number + 1
    return number


def _is_torn(records: bytes, offset: int, steps: list[Step]) -> bool:
    """Return whether the bad record at ``offset`` is the last one, torn by a crash.

    It is not if it ends before the file does, or if an intact record begins after it. If its length is invalid, its
    size is taken to be that of the largest record of ``steps``.
    """
    end = _record_end(records, offset)
    if end is None:
        end = offset + max((len(encode_record(step)) for step in steps), default=len(records))
    if end < len(records):
        return False
    return all(_decode_record(records, later)[0] is None for later in range(offset + 1, len(records)))


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_HASH_BYTES).digest()
