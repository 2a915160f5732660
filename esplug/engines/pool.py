"""Pool of engines: hands out jobs, and keeps the engines' weights equal."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines import failures
from esplug.engines.assignments import Assignments
from esplug.engines.jobs import AnswerCollector, FollowUps, Job, Key, NoFollowUps
from esplug.engines.joining import LOOK_FOR_NODES, JoiningEngines, is_past
from esplug.engines.liveness import EngineSlot
from esplug.engines.messages import Generation
from esplug.engines.scheduler import Piece
from esplug.engines.shipping import fetch
from esplug.engines.usage import EngineUsage
from esplug.errors import RunError, UserError
from esplug.utils.console import say
from esplug.utils.json_files import write_json


class EnginePool(JoiningEngines):
    """n engines with equal weights. Work goes to whichever engine is free; nobody waits for the slowest.

    An engine that dies, or makes no progress, is replaced: the new engine catches up with the others and does the
    work again, so the result is the same.

    Args:
        plan: how many engines, on which resources.
        settings: equal for all engines.
        engine_bytes: memory of one engine on a CPU.
        kv_cache_most: the largest KV cache in bytes that the run can fill, on a CPU.
        folder: the run's directory; the engines' logs go there.
        timeout: seconds without progress after which an engine is replaced.
        max_restarts: engines to replace before giving up.
        ship_model: whether to copy the model to nodes that lack it.
        min_engines: engines that must be there to go on, if nodes are lost.
        resource: Ray's resource that a node must have to run engines.
    """

    def __len__(self) -> int:
        return self.plan.n_engines

    def start(self, history: History) -> CaughtUp:
        """Start all engines at once, and bring their weights to the end of ``history``.

        The pool keeps ``history``, to which the caller appends, for the engines that it has to replace.

        Raises:
            RunError: an engine did not start; the message ends with its last log lines.
            UserError: an engine cannot use the model.
        """
        if self._min_engines > len(self):
            raise UserError(f"--min-engines {self._min_engines}: the run has {len(self)}; choose fewer")
        self._history = history
        self._place()
        starting = [(slot, self._start_engine(slot)) for slot in self._slots]
        caught_up = [self._wait_for_first_start(slot, ref) for slot, ref in starting]
        self._check_equal([state.checksum for state in caught_up], "loading the model")
        decoders = {state.decoder for state in caught_up}
        for decoder in sorted(decoders if len(decoders) > 1 else filter(_is_second_choice, decoders)):
            which = [
                str(slot.index) for slot, state in zip(self._slots, caught_up, strict=True) if state.decoder == decoder
            ]
            say(f"--rollout {self._settings.rollout}: {decoder} (engines {', '.join(which)})")
        return caught_up[0]

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Generation]]:
        """Answer jobs, each on the first engine that is free, and yield keys and answers as jobs finish.

        Raises:
            RunError: a job failed on two engines, the first generation failed for a reason that is not the machine's,
                or too many engines had to be replaced.
        """
        answers = AnswerCollector[Key]()
        for piece, generations in self.run_pieces(jobs):
            yield from answers.add(piece, generations)

    def run_pieces(
        self, jobs: Iterable[Job[Key]], follow_ups: FollowUps[Key] | None = None
    ) -> Iterator[tuple[Piece[Job[Key]], list[Generation]]]:
        """Answer jobs and those that follow from them; yield mini-batches and their answers in any order.

        An engine that holds the weights which jobs to come need waits for them, but no longer than a switch of weights
        takes. Jobs that are ready never wait otherwise. The keys of a job must differ from those of all others. A piece
        that a slow engine is late with is done by another, too, and the first answers count. Raises like :meth:`run`.
        """
        import ray

        self._wait_for_enough()
        later = follow_ups or NoFollowUps()
        work = Assignments(filter(_is_ready, self._slots), jobs, later)
        raised: set[tuple[Key, int]] = set()
        finished: list[tuple[Piece[Job[Key]], list[Generation]]] = []
        while True:
            if follow_ups is None:
                work.hand_out()  # the engines work on while the caller uses the answers
            yield from finished  # after which the caller knows what is to come
            finished = []
            more = work.hand_out()
            if not work.running and not later.awaited() and work.idle:
                return
            more_work = None
            if work.idle and (later.awaited() or more < math.inf):
                more_work = partial(_is_due, later, more)
            if not work.running and not more_work:  # engines that start are needed, but their node may be gone
                more_work = partial(is_past, time.monotonic() + LOOK_FOR_NODES)
            done = self._monitor.wait([*work.running, *self._starting], more_work)
            if done is None:
                self._note_lost_nodes()
                continue
            if done in self._starting:
                if (joined := self._welcome(done)) is not None:
                    work.add(joined[0])
                continue
            slot, piece = work.running[done].slot, work.running[done].piece
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                self._check_worth_repeating(slot, piece, error, raised)
                work.failed(done)
                self._replace(slot, error)
                continue
            self._answered = True
            for ref, late in work.done(done, result):
                self._go_on_without(late, ref)
            finished = [(piece, [_by_engine(each, slot) for each in result])]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Apply one update to the weights of all engines. Returns their checksum; slow engines join again later.

        Raises:
            RunError: the engines' checksums differ, or too many engines had to be replaced.
        """
        checksums: list[int] = []
        while not checksums:  # all may be lost at once
            makes = len(self._history.steps) + 1
            checksums = self._call(self._slots, "update", seeds, coefficients, makes=makes)
        return self._check_equal(checksums, "the update")

    def save(self, folder: Path, *, exact: bool = False) -> None:
        """Write the weights to ``folder``: by an engine on this machine's node, or fetched from another node.

        Args:
            folder: an existing folder.
            exact: write the master weights as they are, rather than rounded to the checkpoint's types.

        Raises:
            OSError: they could not be written.
        """
        import ray

        here = ray.get_runtime_context().get_node_id()
        while True:
            self._wait_for_enough()
            there = [slot for slot in self._slots if slot.ready]
            near = [slot for slot in there if slot.node in ("", here)]
            if near:
                if self._call(near[:1], "save", str(folder.absolute()), exact):
                    return
                continue
            for temporary in self._call(there[:1], "save_here", exact):
                try:
                    fetch(self._get, there[0].actor, temporary, folder)
                    return
                except ray.exceptions.RayError as error:
                    self._replace(there[0], error)

    def usage(self, seconds: float) -> list[EngineUsage]:
        """Return each engine's usage of hardware in the last ``seconds``; an empty list if one does not answer."""
        import ray

        with suppress(Exception):  # it is information for people, and no reason to stop
            there = [slot for slot in self._slots if slot.ready]
            refs = [slot.actor.usage.options(concurrency_group="pulse").remote(seconds) for slot in there]
            found: list[EngineUsage] = ray.get(refs, timeout=1)
            return found
        return []

    def close(self) -> None:
        """Stop all engines."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for slot in self._slots:
            with suppress(Exception):  # Ray may be gone; an earlier error must not be hidden
                ray.kill(slot.actor)
            with suppress(Exception):
                remove_placement_group(slot.placement)
        self._slots.clear()

    def _check_worth_repeating(
        self, slot: EngineSlot, piece: Piece[Job[Any]], error: Exception, raised: set[tuple[Any, int]]
    ) -> None:
        """Raise ``RunError`` if a piece would fail again; note in ``raised`` that it raised an error."""
        name = (piece.job.keys[0], piece.number)
        hopeless = not self._answered and failures.deterministic(error)
        if hopeless or (failures.raised(error) and name in raised):
            raise failures.run_error(slot, error) from error
        if failures.raised(error):
            raised.add(name)

    def _check_equal(self, checksums: list[int], when: str) -> int:
        """Return the checksum of all engines.

        Raises:
            RunError: they differ; ``checksum-mismatch.json`` in the run's directory lists the tensors.
        """
        if len(set(checksums)) == 1:
            return checksums[0]
        each = ", ".join(f"engine {i}: {value:016x}" for i, value in enumerate(checksums))
        iteration, path = len(self._history.steps), self._folder / "checksum-mismatch.json"
        with suppress(Exception):  # a report that cannot be written must not hide the mismatch
            checksums_of = self._call(self._slots, "tensor_checksums")
            engines = failures.mismatch([slot for slot in self._slots if slot.ready], checksums_of)
            write_json(path, {"iteration": iteration, "after": when, "engines": engines}, indent=2)
        raise RunError(
            f"the engines' weights differ after {when} of iteration {iteration} ({each}); going on would give "
            f"wrong results. {path} says which tensors differ"
        )


def _is_second_choice(decoder: str) -> bool:
    """Whether an engine says why it does not use the rollout loop."""
    return "because" in decoder


def _is_ready(slot: EngineSlot) -> bool:
    """Whether a slot's engine has started and has the weights of the others."""
    return slot.ready


def _is_due(later: FollowUps[Any], more: float) -> bool:
    """Whether jobs have become ready, or it is later than ``more``."""
    return later.some_ready() or time.monotonic() >= more


def _by_engine(generation: Generation, slot: EngineSlot) -> Generation:
    """Fill in which engine did the work, and where."""
    work = (replace(each, engine=slot.index, node=slot.address) for each in generation.work)
    return replace(generation, work=tuple(work))
