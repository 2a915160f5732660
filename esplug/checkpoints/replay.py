"""Replay of a seed log's updates on tensors in files, on several CPU threads.

The updates of an element depend only on its tensor's name and its index in the tensor. Each thread therefore reads,
updates and writes a chunk of a million elements at a time, in about 20 MB of memory whatever the model's size. The
result is byte for byte what ``MasterWeights.save`` writes after the same updates.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, TypeAlias

from esplug.checkpoints import tensor_files
from esplug.checkpoints.seed_log_records import Header, Step, weighted_steps
from esplug.checkpoints.tensor_files import StoredTensor, as_bytes
from esplug.noise.low_rank import is_perturbed

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of the phase, the work done so far, and the total. Threads take turns to call it."""

_Add: TypeAlias = Callable[[Any, int, Sequence[int], Any], None]
"""Adds noise: called with elements of a tensor, the index of the first, the noise's iterations, and coefficients."""

_Update: TypeAlias = tuple[list[int], Any]
"""The iterations whose noise an update adds, and the float32 coefficients of all their members."""


class Replay:
    """Reads tensors, updates them and optionally writes them, on several threads."""

    def __init__(self, header: Header, threads: int, progress: Progress | None) -> None:
        self._header, self._threads, self._progress = header, threads, progress
        self._stop, self._lock = Event(), Lock()
        self._phase, self._done, self._total = "", 0, 0

    def run(
        self,
        phase: str,
        tensors: Sequence[StoredTensor],
        steps: Sequence[Step],
        places: Mapping[str, StoredTensor] | None = None,
    ) -> int:
        """Replay ``steps`` on all tensors and write each to its place, if any. Returns their 64-bit checksum."""
        seeds = [step.seeds(self._header.run_seed) for step in steps]
        updates = list(_updates(steps))
        self._phase, self._done = phase, 0
        self._total = sum(tensor.count * (1 + len(updates) * self._is_updated(tensor)) for tensor in tensors)
        checksum = 0
        running: deque[Future[int]] = deque()
        pool = ThreadPoolExecutor(self._threads, "esplug-replay")
        try:
            for tensor in tensors:
                place = places[tensor.name] if places is not None else None
                chunk, work = self._chunk_and_work(tensor, seeds, updates)
                for start in range(0, tensor.count, chunk):
                    if len(running) >= 4 * self._threads:  # waiting jobs hold their noise keys in memory
                        checksum += running.popleft().result()
                    stop = min(tensor.count, start + chunk)
                    running.append(pool.submit(work, tensor, place, start, stop))
            checksum += sum(future.result() for future in running)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()
        return checksum % 2**64

    def _is_updated(self, tensor: StoredTensor) -> bool:
        return tensor.is_float and (not self._header.low_rank or is_perturbed(tensor.name, tensor.shape))

    def _chunk_and_work(
        self, tensor: StoredTensor, seeds: Sequence[Sequence[int]], updates: Sequence[_Update]
    ) -> tuple[int, Callable[..., int]]:
        """Return the number of a tensor's elements in a chunk, and the function that handles a chunk."""
        chunk, rank = tensor_files.CHUNK, self._header.low_rank
        if not tensor.is_float:
            return chunk, self._copy
        updates = updates if self._is_updated(tensor) and tensor.count else ()
        if not rank or not updates:
            add = _full_rank_noise(tensor, seeds if updates else ())
            return chunk, functools.partial(self._update, updates=updates, add=add)
        width = tensor.shape[1]
        whole_rows = max(1, chunk // width) * width
        return whole_rows, functools.partial(self._update, updates=updates, add=_low_rank_noise(tensor, seeds, rank))

    def _update(
        self,
        tensor: StoredTensor,
        place: StoredTensor | None,
        start: int,
        stop: int,
        updates: Sequence[_Update],
        add: _Add,
    ) -> int:
        """Replay elements ``start`` to ``stop`` of a floating-point tensor. Returns their checksum."""
        from esplug.noise.kernels import cpu

        stored = tensor.empty(stop - start)
        tensor.read(as_bytes(stored), start * stored.itemsize)
        elements = cpu.flat(stored.float() if self._header.master_dtype == "float32" else stored)
        for iterations, coefficients in updates:
            if self._stop.is_set():
                return 0
            add(elements, start, iterations, coefficients)
            self._report(stop - start)
        if place is not None:
            rounded = place.empty(stop - start)
            cpu.convert(elements, cpu.flat(rounded))
            place.write(as_bytes(rounded), start * rounded.itemsize)
        self._report(stop - start)
        return cpu.checksum(elements, start, tensor.name)

    def _copy(self, tensor: StoredTensor, place: StoredTensor | None, start: int, stop: int) -> int:
        """Copy bytes of a tensor that is not floating-point. They do not count in the checksum."""
        if place is not None:
            tensor.copy(place, start, stop)
        self._report(stop - start)
        return 0

    def _report(self, work: int) -> None:
        with self._lock:
            self._done += work
            if self._progress and not self._stop.is_set():
                self._progress(self._phase, self._done, self._total)


def _updates(steps: Sequence[Step]) -> Iterator[_Update]:
    import numpy as np

    for done in range(1, len(steps) + 1):
        if found := weighted_steps(steps[:done]):
            coefficients = np.array([value for _, values in found for value in values], dtype=np.float32)
            yield [step.iteration for step, _ in found], coefficients


def _full_rank_noise(tensor: StoredTensor, seeds: Sequence[Sequence[int]]) -> _Add:
    import numpy as np

    from esplug.noise.full_rank import tensor_keys
    from esplug.noise.kernels import cpu

    keys = [np.array(tensor_keys(members, tensor.name), dtype=np.uint64) for members in seeds]

    def add(elements: Any, start: int, iterations: Sequence[int], coefficients: Any) -> None:
        cpu.update(elements, start, np.concatenate([keys[each] for each in iterations]), coefficients)

    return add


def _low_rank_noise(tensor: StoredTensor, seeds: Sequence[Sequence[int]], rank: int) -> _Add:
    import numpy as np

    from esplug.noise.kernels import cpu
    from esplug.noise.low_rank import factor_keys

    width = tensor.shape[1]
    keys = [np.array(factor_keys(members, tensor.name), dtype=np.uint64) for members in seeds]

    def add(elements: Any, start: int, iterations: Sequence[int], coefficients: Any) -> None:
        pairs = np.concatenate([keys[each] for each in iterations])
        cpu.update_low_rank(elements.reshape(-1, width), start // width, 0, width, pairs, coefficients, rank)

    return add
