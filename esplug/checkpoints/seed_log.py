"""The seed log: a fine-tuned model as its base, a run seed and the coefficients of every iteration.

Replaying it on the base gives the master weights bit for bit (:mod:`esplug.checkpoints.export`). It takes the same few
kilobytes whatever the model's size: ``33 + 4 N`` bytes an iteration, 77 kB for 500 iterations of 30 members; with
momentum, 8 bytes an iteration more.

The file is a header and then one record for every iteration, numbered from 0 without a gap, all little-endian:

- The header is one line of UTF-8 JSON, ``{"format":"esplug-seed-log","version":3,"base":{"name":...,
  "revision":...,"weights_checksum":"16 hex digits"},"master_dtype":...,"run_seed":...,"low_rank":...,
  "settings":{...},"crc":"16 hex digits"}`` and a newline, without blanks. ``low_rank`` is the rank of members'
  noise, or null where it is full; before version 3 it always was. ``crc`` comes last and is the 8-byte BLAKE2b hash
  of the line's bytes before ``,"crc"``.
- A record is the payload's length (u32), the payload, and the 8-byte BLAKE2b hash of both. The payload is the
  iteration (u64), the checksum of the master weights after it (u64, :func:`esplug.noise.kernels.cpu.checksum`),
  flags (u8: 1 where the members are mirrored pairs, 2 where there is momentum, or their sum), the number of members
  N (u32), N coefficients (float32), and with flag 2 the momentum (float64). Version 1 had no flag 2.

Member seeds are not stored: :func:`esplug.es.members.population` gives them from the run seed and the iteration. An
iteration moves the weights by its members' noise times their coefficients, in order; with momentum, then by that of
the iteration before, of the one before that, and so on, their coefficients times
:func:`esplug.es.update.momentum_weights` rounded to float32. Where all these are zero nothing moves; such an update
must be skipped rather than added, which would make -0.0 of a weight +0.0.

Every record is on the disk before :meth:`SeedLog.append` returns, so that a crash can only tear the last one.
"""

import itertools
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from esplug.errors import UserError
from esplug.es.members import population
from esplug.es.update import momentum_weights
from esplug.noise.full_rank import float32
from esplug.noise.low_rank import scale
from esplug.utils import atomic_write

FILE_NAME = "seeds.log"
FORMAT, VERSION = "esplug-seed-log", 3

_LENGTH, _FIXED, _HASH_BYTES = struct.Struct("<I"), struct.Struct("<QQBI"), 8
_EXTRA = struct.Struct("<d")
_MIRRORED, _MOMENTUM = 1, 2  # flags
_CRC = re.compile(rb',"crc":"([0-9a-f]{16})"\}\n')
_CRC_BYTES = len(',"crc":"0123456789abcdef"}\n')
_LONGEST_HEADER = 2**24
_MASTER_DTYPES = ("float32", "model")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a run started from.

    Attributes:
        name: folder or Hugging Face id, as the user gave it.
        revision: commit on the Hub, where it comes from there.
        weights_checksum: 64-bit checksum of the master weights before the first iteration.
    """

    name: str
    revision: str | None
    weights_checksum: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.revision, str | None):
            raise ValueError("the base model's name and revision must be text")
        _check_u64("weights checksum", self.weights_checksum)


@dataclass(frozen=True, slots=True)
class Header:
    """What a run's iterations start from.

    Attributes:
        base: the model.
        master_dtype: ``float32``, or ``model`` where the master has the checkpoint's own types.
        run_seed: from which all member seeds come.
        settings: whatever else should be known about the run, as JSON has it.
        low_rank: of the members' noise (:mod:`esplug.noise.low_rank`); ``None`` where it is full.
    """

    base: Base
    master_dtype: Literal["float32", "model"]
    run_seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    low_rank: int | None = None

    def __post_init__(self) -> None:
        _check_u64("run seed", self.run_seed)
        if self.master_dtype not in _MASTER_DTYPES:
            raise ValueError(f"master dtype {self.master_dtype!r} must be one of {', '.join(_MASTER_DTYPES)}")
        if self.low_rank is not None:
            scale(self.low_rank)  # refuses one out of range


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration's update.

    Attributes:
        iteration: from 0.
        coefficients: one for each of the N members, rounded to float32.
        antithetic: whether the members were drawn in mirrored pairs.
        checksum: 64-bit checksum of the master weights after the update.
        momentum: weight of the update before in this one's movement, from 0 to 0.99.

    Raises:
        ValueError: there are no coefficients, one is not finite in float32, a number does not fit in 64 bits, or the
            momentum is out of range.
    """

    iteration: int
    coefficients: tuple[float, ...]
    antithetic: bool
    checksum: int
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 0.99:
            raise ValueError(f"momentum {self.momentum} must be from 0 to 0.99")
        _check_u64("iteration", self.iteration)
        _check_u64("checksum", self.checksum)
        count = f"<{len(self.coefficients)}f"
        try:
            rounded = struct.unpack(count, struct.pack(count, *self.coefficients))
        except OverflowError:
            rounded = (float("inf"),)
        if not rounded or not all(abs(value) < float("inf") for value in rounded):  # NaN compares false
            raise ValueError(
                f"iteration {self.iteration}: every coefficient must be finite in float32, and there is one"
            )
        object.__setattr__(self, "coefficients", rounded)

    def seeds(self, run_seed: int) -> list[int]:
        """Return the seeds of the N members, in order."""
        members = population(run_seed, self.iteration, len(self.coefficients), antithetic=self.antithetic)
        return [member.seed for member in members]


def parts(steps: Sequence[Step]) -> list[tuple[Step, list[float]]]:
    """Return what the last of a run's ``steps`` moves the weights by: steps, each with its members' coefficients.

    The last step itself comes first, then those that momentum still remembers. Empty where nothing moves.
    """
    found = [
        (step, [float32(weight * value) for value in step.coefficients])
        for weight, step in zip(momentum_weights(steps[-1].momentum), reversed(steps), strict=False)
    ]
    return found if any(any(values) for _, values in found) else []


def movement(steps: Sequence[Step], run_seed: int) -> tuple[list[int], list[float]]:
    """Return the same as seeds and coefficients, one of each for every perturbation to be added, in order."""
    found = parts(steps)
    seeds = [seed for step, _ in found for seed in step.seeds(run_seed)]
    return seeds, [value for _, values in found for value in values]


class Recorded(NamedTuple):
    """What a seed log holds: header, steps, and whether a torn last record was dropped."""

    header: Header
    steps: list[Step]
    torn: bool


class SeedLog:
    """A run's seed log, open for appending. Use :meth:`create` or :meth:`open`, and :meth:`close` or ``with``.

    Attributes:
        header: what the run starts from.
        steps: all iterations so far.
        torn: whether a torn last record was dropped at opening.
        damage: what else was wrong with the file, which is cut off there.
        copy: the file as it was, where it was damaged.
    """

    def __init__(self, path: Path, recorded: Recorded, end: int, damage: str | None = None) -> None:
        self.header, self.steps, self.torn = recorded
        self.damage = damage
        self.copy: Path | None = None
        self._end = end
        self._file = path.open("r+b", buffering=0)

    @classmethod
    def create(cls, path: Path, header: Header) -> "SeedLog":
        """Begin a log.

        Raises:
            OSError: it could not be written.
            UserError: the file exists.
            ValueError: the settings are not JSON.
        """
        line = _header_line(header)
        if path.exists():
            raise UserError(f"{path}: exists; continue that run, or start one in another directory")
        atomic_write.write(path, line)  # so that a log, if there is one, has a whole header
        return cls(path, Recorded(header, [], False), len(line))

    @classmethod
    def open(cls, path: Path) -> "SeedLog":
        """Open a log to go on with it, at the last iteration before any damage.

        A torn last record is cut off. Where more is lost, the damaged file is kept beside, which ``copy`` names.

        Raises:
            UserError: the file cannot be read, is not a seed log, or its header is damaged.
        """
        log = cls(path, *_scan(path))
        if log.damage:
            copies = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
            log.copy = next(copy for copy in copies if not copy.exists())
            shutil.copyfile(path, log.copy)
        log._cut()
        return log

    def append(self, step: Step) -> None:
        """Write one iteration and wait until it is on the disk.

        Raises:
            ValueError: it is not the next iteration.
            OSError: it could not be written. The log is as it was.
        """
        if step.iteration != len(self.steps):
            raise ValueError(f"iteration {step.iteration} is out of order: the next is {len(self.steps)}")
        frame = _frame(step)
        try:
            self._file.seek(self._end)
            written = 0
            while written < len(frame):
                written += self._file.write(frame[written:])
            os.fsync(self._file.fileno())
        except BaseException:
            self._cut()
            raise
        self._end += len(frame)
        self.steps.append(step)

    def _cut(self) -> None:
        """Cut off what is not part of the log."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path, stop: int | None = None) -> Recorded:
    """Read a log. A torn last record is dropped, which ``torn`` reports.

    Args:
        path: the file.
        stop: read no more than so many iterations; damage behind them does no harm.

    Raises:
        UserError: the file is missing, not a seed log, written by a newer esplug, or damaged.
    """
    recorded, _, damage = _scan(path, stop)
    if damage:
        raise UserError(
            f"{path}: {damage}; restore the file from a copy, or go back to --iteration "
            f"{len(recorded.steps)} or less: those before are intact"
        )
    return recorded


def count(path: Path) -> int:
    """Count a log's records by what they say of their lengths, without checking them; a torn last one is left out.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.readline(_LONGEST_HEADER)
        records = file.read()
    offset = number = 0
    while (end := _end(records, offset)) is not None and end <= len(records):
        offset, number = end, number + 1
    return number


def _scan(path: Path, stop: int | None = None) -> tuple[Recorded, int, str | None]:
    """Read a log up to the first damage; return also where its last good record ends, and what damage there is."""
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
            header = _read_header(path, line)
            records = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a run's {FILE_NAME}") from error
    steps: list[Step] = []
    offset, torn, damage = 0, False, None
    while offset < len(records) and len(steps) != stop:
        step, end = _read_frame(records, offset)
        if step is None and _is_last(records, offset, steps):
            torn = True
            break
        if step is None or step.iteration != len(steps):
            fault = "is damaged" if step is None else f"is that of iteration {step.iteration}"
            damage = f"the record of iteration {len(steps)}, at byte {len(line) + offset}, {fault}"
            break
        steps.append(step)
        offset = end
    return Recorded(header, steps, torn), len(line) + offset, damage


def _header_line(header: Header) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "base": {
            "name": header.base.name,
            "revision": header.base.revision,
            "weights_checksum": f"{header.base.weights_checksum:016x}",
        },
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


def _read_header(path: Path, line: bytes) -> Header:
    damaged = f"{path}: the header is damaged; restore the file from a copy"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
        if line.startswith(f'{{"format":"{FORMAT}"'.encode()):
            raise UserError(damaged) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        what = "not a seed log" if line else "empty"
        raise UserError(f"{path}: {what}; name a run's {FILE_NAME}, or restore it from a copy")
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


def _frame(step: Step) -> bytes:
    count, flags = len(step.coefficients), _MIRRORED * step.antithetic + _MOMENTUM * bool(step.momentum)
    payload = _FIXED.pack(step.iteration, step.checksum, flags, count) + struct.pack(f"<{count}f", *step.coefficients)
    if step.momentum:
        payload += _EXTRA.pack(step.momentum)
    hashed = _LENGTH.pack(len(payload)) + payload
    return hashed + _hash(hashed)


def _read_frame(records: bytes, offset: int) -> tuple[Step | None, int]:
    """Return the step of the record at ``offset``, or ``None`` if it is not a good one, and where it ends."""
    end = _end(records, offset)
    if end is None or records[end - _HASH_BYTES : end] != _hash(records[offset : end - _HASH_BYTES]):
        return None, offset
    start = offset + _LENGTH.size
    iteration, checksum, flags, count = _FIXED.unpack_from(records, start)
    start += _FIXED.size
    coefficients = struct.unpack_from(f"<{count}f", records, start)
    momentum = _EXTRA.unpack_from(records, start + 4 * count)[0] if flags & _MOMENTUM else 0.0
    try:
        return Step(iteration, coefficients, bool(flags & _MIRRORED), checksum, momentum), end
    except ValueError:
        return None, offset


def _end(records: bytes, offset: int) -> int | None:
    """Say where the record at ``offset`` ends, perhaps behind the file's end; ``None`` if its length is nonsense."""
    start = offset + _LENGTH.size
    if start + _FIXED.size > len(records):
        return None
    (length,) = _LENGTH.unpack_from(records, offset)
    *_, flags, count = _FIXED.unpack_from(records, start)
    right = flags <= _MIRRORED | _MOMENTUM and length == _payload_bytes(count, bool(flags & _MOMENTUM))
    return start + length + _HASH_BYTES if right else None


def _is_last(records: bytes, offset: int, steps: list[Step]) -> bool:
    """Whether the bad record at ``offset`` is the last, which a crash may have torn.

    It is not if a good one begins later, if it says that it ends earlier, or, where it does not say, if what is
    left is more than one record such as the ``steps`` before it took.
    """
    end = _end(records, offset)
    if end is None:
        largest = max((len(_frame(step)) for step in steps), default=len(records))
        end = offset + largest
    if end < len(records):
        return False
    return all(_read_frame(records, later)[0] is None for later in range(offset + 1, len(records)))


def _payload_bytes(count: int, momentum: bool) -> int:
    return _FIXED.size + 4 * count + _EXTRA.size * momentum


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_HASH_BYTES).digest()


def _check_u64(what: str, value: int) -> None:
    if not 0 <= value < 2**64:
        raise ValueError(f"{what} must be between 0 and 2**64 - 1, got {value}")
