"""Replaying a seed log's updates on tensors in files, on several threads, without a GPU.

A weight's updates depend on its tensor's name and its place in the tensor alone. So tensors are read, replayed
and written by stretches of a million elements, one to a thread, and take some twenty megabytes of memory a
thread however large the model is. The result is, byte for byte, what ``MasterWeights.save``
writes after the same updates.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, TypeAlias

from esplug.checkpoints import tensor_files as stored_tensors
from esplug.checkpoints.seed_log_records import Header, Step, weighted_steps
from esplug.checkpoints.tensor_files import StoredTensor, as_bytes
from esplug.noise.low_rank import is_perturbed

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called from several threads, one at a time, with what is being done, the work done so far, and all of it."""

_Add: TypeAlias = Callable[[Any, int, Sequence[int], Any], None]
"""Adds noise to elements of a tensor: them, the first one, the iterations whose noise it is, and the coefficients."""

_Move: TypeAlias = tuple[list[int], Any]
"""A movement of the weights: the iterations whose noise it adds, and the coefficients, float32, one after the other."""


class Replay:
    """Reads tensors, updates them and, if asked, writes them.

    Args:
        header: of the seed log.
        threads: how many compute.
        progress: told what is going on.
    """

    def __init__(self, header: Header, threads: int, progress: Progress | None) -> None:
        self._header, self._threads, self._progress = header, threads, progress
        self._stop, self._lock = Event(), Lock()
        self._what, self._done, self._total = "", 0, 0

    def run(
        self,
        what: str,
        tensors: Sequence[StoredTensor],
        steps: Sequence[Step],
        places: Mapping[str, StoredTensor] | None = None,
    ) -> int:
        """Replay ``steps`` on every tensor, and write each to its place. Returns the 64-bit checksum of all."""
        seeds = [step.seeds(self._header.run_seed) for step in steps]
        moves = list(_moves(steps))
        self._what, self._done = what, 0
        self._total = sum(tensor.count * (1 + len(moves) * self._is_moved(tensor)) for tensor in tensors)
        checksum = 0
        running: deque[Future[int]] = deque()
        pool = ThreadPoolExecutor(self._threads, "esplug-replay")
        try:
            for tensor in tensors:
                place = places[tensor.name] if places is not None else None
                stretch, work = self._work(tensor, seeds, moves)
                for start in range(0, tensor.count, stretch):
                    if len(running) >= 4 * self._threads:  # what waits holds its keys
                        checksum += running.popleft().result()
                    stop = min(tensor.count, start + stretch)
                    running.append(pool.submit(work, tensor, place, start, stop))
            checksum += sum(future.result() for future in running)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()
        return checksum % 2**64

    def _is_moved(self, tensor: StoredTensor) -> bool:
        """Say whether the run moves a tensor."""
        return tensor.is_float and (not self._header.low_rank or is_perturbed(tensor.name, tensor.shape))

    def _work(
        self, tensor: StoredTensor, seeds: Sequence[Sequence[int]], moves: Sequence[_Move]
    ) -> tuple[int, Callable[..., int]]:
        """Return how many elements of a tensor to work on at a time, and what does it."""
        stretch, rank = stored_tensors.STRETCH, self._header.low_rank
        if not tensor.is_float:
            return stretch, self._copy
        moves = moves if self._is_moved(tensor) and tensor.count else ()
        if not rank or not moves:
            return stretch, functools.partial(self._update, moves=moves, add=_noise(tensor, seeds if moves else ()))
        width = tensor.shape[1]
        whole_rows = max(1, stretch // width) * width
        return whole_rows, functools.partial(self._update, moves=moves, add=_low_rank_noise(tensor, seeds, rank))

    def _update(
        self,
        tensor: StoredTensor,
        place: StoredTensor | None,
        start: int,
        stop: int,
        moves: Sequence[_Move],
        add: _Add,
    ) -> int:
        """Replay elements ``start .. stop`` of a floating-point tensor. Returns their checksum."""
        from esplug.noise.kernels import cpu

        stored = tensor.empty(stop - start)
        tensor.read(as_bytes(stored), start * stored.itemsize)
        elements = cpu.flat(stored.float() if self._header.master_dtype == "float32" else stored)
        for iterations, coefficients in moves:
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
        """Copy bytes of a tensor that is not perturbed, nor part of the checksum."""
        if place is not None:
            tensor.copy(place, start, stop)
        self._report(stop - start)
        return 0

    def _report(self, work: int) -> None:
        with self._lock:
            self._done += work
            if self._progress and not self._stop.is_set():
                self._progress(self._what, self._done, self._total)


def _moves(steps: Sequence[Step]) -> Iterator[_Move]:
    import numpy as np

    for done in range(1, len(steps) + 1):
        if found := weighted_steps(steps[:done]):
            coefficients = np.array([value for _, values in found for value in values], dtype=np.float32)
            yield [step.iteration for step, _ in found], coefficients


def _noise(tensor: StoredTensor, seeds: Sequence[Sequence[int]]) -> _Add:
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
