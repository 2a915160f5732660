"""Joining engines: replacements of those that failed, on checked nodes, and late ones catch up with the others."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from esplug.checkpoints.history import CaughtUp
from esplug.checkpoints.seed_log_records import movement
from esplug.engines import failures
from esplug.engines.lifecycle import ManagedEngines
from esplug.engines.liveness import EngineSlot
from esplug.engines.nodes import NodeReport, ask_placement, report_here, version_faults, without_model
from esplug.engines.pace import patience
from esplug.engines.shipping import ship_model
from esplug.errors import RunError, UserError
from esplug.utils.console import say

#: Seconds between two looks at which nodes are there.
LOOK_FOR_NODES = 2.0
_LOOK_AGAIN = 10.0  # seconds until a node that lacked something is checked again
_PORT_IN_USE = "ddress already in use"  # another process took a port between vLLM's finding and binding it


@dataclass(frozen=True, slots=True)
class Start:
    """What an engine does before it joins: its node is checked, it starts, or it makes updates that it has missed.

    Attributes:
        on_node: whether the check is over, so that there is an engine.
        steps: updates of the run that it will have made.
        caught_up: its state before, if it has started. The result to come is a checksum, or work that is late.
    """

    slot: EngineSlot
    on_node: bool = False
    steps: int = 0
    caught_up: CaughtUp | None = None


class JoiningEngines(ManagedEngines):
    """Engines, of which those that failed are replaced while the others go on.

    A replacement starts once a node has room for it and everything that it needs. It replays the run's updates, so that
    it has the weights of the others.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._starting: dict[Any, Start] = {}  # engines that are to join, by the reference to what they do
        self._refused: set[str] = set()  # what nodes lacked, and was said

    def _replace(self, slot: EngineSlot, error: Exception) -> None:
        """Replace an engine that failed. Its replacement joins meanwhile; see :meth:`_welcome`."""
        self._note_lost_nodes()
        self._kill(slot, error)
        self._check_node(slot)

    def _check_node(self, slot: EngineSlot, after: float = 0.0) -> None:
        """Have the node that has room for an engine checked: now, ``after`` some seconds, or once there is one."""
        self._starting[ask_placement(slot.placement, Path(self._settings.model), after)] = Start(slot)

    def _welcome(self, ref: Any) -> tuple[EngineSlot, CaughtUp] | None:
        """Go on with a replacement, which has done a step. Returns its slot once it has the weights of the others."""
        import ray

        self._note_lost_nodes()
        start = self._starting.pop(ref)
        slot, steps = start.slot, self._history.steps
        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._replace(slot, error)
            return None
        if not start.on_node:
            self._start_on(NodeReport(*found), slot)
            return None
        caught_up = found if start.caught_up is None else start.caught_up
        if isinstance(found, int):
            caught_up = replace(caught_up, checksum=found)
        made, last = 0, None
        for count in range(start.steps + 1, len(steps) + 1):
            seeds, coefficients = movement(steps[:count], self._history.run_seed)
            if seeds:
                made, last = made + 1, slot.actor.update.remote(seeds, coefficients)
        if last is not None:
            caught_up = replace(caught_up, replayed=caught_up.replayed + made)
            self._starting[last] = Start(slot, True, len(steps), caught_up)
            return None
        self._check_joined(slot, caught_up)
        return slot, caught_up

    def _go_on_without(self, slot: EngineSlot, ref: Any, makes: int | None = None) -> None:
        """Do not wait for an engine. Once it has done what ``ref`` refers to, it catches up and joins again.

        It will then have made as many updates of the run as it ``makes``, or as there are now.
        """
        slot.ready, slot.late = False, True
        state = CaughtUp(self._history.base or 0, self._history.checksum or 0)
        self._starting[ref] = Start(slot, True, len(self._history.steps) if makes is None else makes, state)

    def _start_on(self, node: NodeReport, slot: EngineSlot) -> None:
        """Start an engine on a node that has what it needs, or say what the node lacks and look again later."""
        fault = self._fault(node)
        if fault:
            if fault not in self._refused:
                say(f"{fault}. Until then, no engine starts there")
            self._refused.add(fault)
            self._check_node(slot, _LOOK_AGAIN)
            return
        slot.node, slot.address, slot.absent = node.node, node.address, False
        here = [each for each in self._slots if each.node == node.node]
        slot.cores = here.index(slot), len(here)
        self._spawn(slot)
        self._starting[self._start_engine(slot)] = Start(slot, True, len(self._history.steps))

    def _fault(self, node: NodeReport) -> str:
        """Return what a node lacks and how to fix it; an empty text if nothing. Ships the model if that is wanted."""
        model = Path(self._settings.model)
        here = report_here(model)
        for fault in version_faults(node, here):
            return fault
        if node.model == here.model or node.node in self._settings.models:
            return ""
        if not self._ship_model:
            return without_model(node.address, model)
        try:
            self._settings = replace(self._settings, models={**self._settings.models, **ship_model(model, [node.node])})
        except UserError as error:
            return str(error)
        return ""

    def _check_joined(self, slot: EngineSlot, caught_up: CaughtUp) -> None:
        """Check that an engine has the weights of the others. Raises ``RunError`` if its checksum differs."""
        late, slot.ready, slot.late = slot.late, True, False
        for folder, reason in caught_up.damaged:
            say(f"skipped a checkpoint: {folder}: {reason}")
        expected = self._history.checksum
        if expected is not None and caught_up.checksum != expected:
            raise RunError(
                f"engine {slot.index} was {'late' if late else 'replaced'}, and {caught_up.replayed} updates of the "
                f"seed log gave it weights with checksum {caught_up.checksum:016x} instead of {expected:016x}; going "
                "on would give wrong results"
            )
        if not late:
            say(f"engine {slot.index} is there again, {caught_up.replayed} updates replayed")

    def _wait_for_first_start(self, slot: EngineSlot, ref: Any) -> CaughtUp:
        """Wait until an engine has started. Replaces it if it died, but not if it raised: the next would raise, too."""
        import ray

        try:
            found: CaughtUp = self._get(ref)
        except ray.exceptions.RayError as error:
            if failures.raised(error) and _PORT_IN_USE not in str(error):
                raise failures.run_error(slot, error) from error
            self._replace(slot, error)
        else:
            slot.ready = True
            return found
        while not slot.absent or self._room(slot):
            joined = self._wait_for_a_start([ref for ref, start in self._starting.items() if start.slot is slot])
            if joined is not None:
                return joined[1]
        raise RunError(f"engine {slot.index}: its node is gone, and no other has room for it")

    def _wait_for_a_start(self, refs: Sequence[Any]) -> tuple[EngineSlot, CaughtUp] | None:
        """Wait until one of these starts is done, but no longer than it takes to see that a node is gone."""
        until = time.monotonic() + LOOK_FOR_NODES
        done = self._monitor.wait(list(refs), partial(is_past, until))
        self._note_lost_nodes()
        return None if done is None else self._welcome(done)

    def _wait_for_enough(self) -> None:
        """Wait until --min-engines are there.

        Raises:
            RunError: they are not for as long as an engine may take to start.
        """
        self._note_lost_nodes()
        since = time.monotonic()
        while (there := sum(slot.ready for slot in self._slots)) < self._min_engines:
            if time.monotonic() - since > self._monitor.start_timeout:
                raise RunError(
                    f"{there} of at least {self._min_engines} engines are left (--min-engines), and no node has had "
                    f"room for another for {self._monitor.start_timeout:g} s; resume the run when there are more nodes"
                )
            self._wait_for_a_start(list(self._starting))
            if any(start.on_node for start in self._starting.values()):
                since = time.monotonic()  # one starts, which can take long

    def _note_lost_nodes(self) -> None:
        """Note which failed engines were lost with their nodes: they do not count as replaced."""
        import ray

        waiting = [start.slot for start in self._starting.values() if not start.on_node and not start.slot.absent]
        if not waiting:
            return
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for slot in waiting:
            if slot.node not in alive:
                slot.absent = True
                self.restarts -= 1
                left = sum(each.ready for each in self._slots)
                say(f"engine {slot.index}: its node is gone; going on with {left} until a node has room for another")

    def _call(self, slots: Sequence[EngineSlot], method: str, *arguments: Any, makes: int | None = None) -> list[Any]:
        """Call a method of several engines at once. Leaves out those that are not there, and replaces those that fail.

        Args:
            slots: the engines.
            method: its name.
            arguments: its arguments.
            makes: updates of the run that an engine will have made when the method returns their checksum. Then, the
                others do not wait for an engine that is late.

        Raises:
            OSError: ``save`` or ``save_here`` raised it.
            RunError: the method raised on an engine and on its replacement, or too many engines were replaced.
        """
        import ray

        self._wait_for_enough()
        began, late = time.monotonic(), math.inf
        calls = {getattr(slot.actor, method).remote(*arguments): slot for slot in slots if slot.ready}
        order, results = list(calls), {}
        while calls:
            ref = self._monitor.wait(list(calls), partial(is_past, late) if late < math.inf else None)
            if ref is None:
                for other, slot in calls.items():
                    self._go_on_without(slot, other, makes)
                break
            slot = calls.pop(ref)
            try:
                results[ref] = ray.get(ref)
                slot.raised = ""
                if makes is not None:
                    late = min(late, began + patience(time.monotonic() - began))
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if method in ("save", "save_here") and isinstance(cause, OSError):  # the disk failed, not the engine
                    raise cause from error
                if failures.raised(error):
                    if slot.raised == method:
                        raise failures.run_error(slot, error) from error
                    slot.raised = method
                self._replace(slot, error)
        return [results[ref] for ref in order if ref in results]


def is_past(when: float) -> bool:
    """Whether it is later than ``when``."""
    return time.monotonic() >= when
