"""The seed log: a fine-tuned model as its base model, a run seed and the coefficients of every iteration.

Replaying the log on the base model gives the master weights bit for bit (:mod:`esplug.checkpoints.export`). The log
takes ``33 + 4 N`` bytes an iteration whatever the model's size, 8 more with momentum: 77 kB for 500 iterations of 30
members. :mod:`esplug.checkpoints.seed_log_format` describes the file.

Member seeds are not stored: :func:`esplug.es.members.population` derives them from the run seed and the iteration. An
iteration adds its members' noise times their coefficients to the weights, in order. With momentum it then adds the
noise of the previous iteration, of the one before that, and so on, with their coefficients times
:func:`esplug.es.update.momentum_weights`, rounded to float32. An update whose coefficients are all zero must be
skipped: adding it would turn a weight of -0.0 into +0.0.

:meth:`SeedLog.append` returns once the record is on the disk, so a crash can tear only the last record.
"""

import itertools
import os
import shutil
from pathlib import Path
from typing import Self

from esplug.checkpoints.seed_log_format import encode_header, encode_record, scan
from esplug.checkpoints.seed_log_records import Header, Recorded, Step
from esplug.errors import UserError
from esplug.utils import atomic_write


class SeedLog:
    """A run's seed log, open for appending. Use :meth:`create` or :meth:`open`, and :meth:`close` or ``with``.

    Attributes:
        header: what the run started from.
        steps: all iterations so far.
        torn: whether a torn last record was dropped on opening.
        damage: description of any other damage; the log is cut off before it.
        copy: copy of the damaged file, if any.
    """

    def __init__(self, path: Path, recorded: Recorded, end: int, damage: str | None = None) -> None:
        self.header, self.steps, self.torn = recorded
        self.damage = damage
        self.copy: Path | None = None
        self._end = end
        self._file = path.open("r+b", buffering=0)

    @classmethod
    def create(cls, path: Path, header: Header) -> "SeedLog":
        """Create a log.

        Raises:
            OSError: the file cannot be written.
            UserError: the file exists.
            ValueError: the settings are not JSON.
        """
        line = encode_header(header)
        if path.exists():
            raise UserError(f"{path}: exists; continue that run, or start one in another directory")
        atomic_write.write(path, line)  # so that every log has a complete header
        return cls(path, Recorded(header, [], False), len(line))

    @classmethod
    def open(cls, path: Path) -> "SeedLog":
        """Open a log to continue it after the last iteration before any damage.

        A torn last record is cut off. If more than that is lost, the damaged file is first copied to ``copy``.

        Raises:
            UserError: the file cannot be read, is not a seed log, or its header is damaged.
        """
        log = cls(path, *scan(path))
        if log.damage:
            copies = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
            log.copy = next(copy for copy in copies if not copy.exists())
            shutil.copyfile(path, log.copy)
        log._truncate()
        return log

    def append(self, step: Step) -> None:
        """Write one iteration and wait until it is on the disk.

        Raises:
            ValueError: it is not the next iteration.
            OSError: it cannot be written. The log stays unchanged.
        """
        if step.iteration != len(self.steps):
            raise ValueError(f"iteration {step.iteration} is out of order: the next is {len(self.steps)}")
        record = encode_record(step)
        try:
            self._file.seek(self._end)
            written = 0
            while written < len(record):
                written += self._file.write(record[written:])
            os.fsync(self._file.fileno())
        except BaseException:
            self._truncate()
            raise
        self._end += len(record)
        self.steps.append(step)

    def _truncate(self) -> None:
        """Cut off everything after the last record."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path, stop: int | None = None) -> Recorded:
    """Read a log, and at most ``stop`` iterations, ignoring damage after them. A torn last record is dropped.

    Raises:
        UserError: the file is missing, not a seed log, written by a newer esplug, or damaged.
    """
    recorded, _, damage = scan(path, stop)
    if damage:
        raise UserError(
            f"{path}: {damage}; restore the file from a copy, or use --iteration {len(recorded.steps)} or less, "
            "which is intact"
        )
    return recorded
