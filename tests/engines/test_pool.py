"""The engine pool on real Ray, with engines that start quickly: handing out jobs, replacing engines, equal weights.

`tests/integration/faults/test_runs.py` tests the same on real vLLM.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.history import CatchUp, CaughtUp, History
from esplug.checkpoints.seed_log_records import Step
from esplug.engines import EnginePool, Job
from esplug.engines.engine_errors import with_plain_errors
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.engines.scheduler import WorkScheduler
from esplug.engines.usage import EngineUsage
from esplug.errors import RunError, UserError
from esplug.planning.placement import Plan
from tests.helpers.timing import within

pytestmark = pytest.mark.vllm

BASE = 1000


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, lock: Any, more: Any) -> None:
        super().__init__("the true reason")
        self.lock = lock


class QuickEngine:
    """An engine whose weights are one number. Files in the run's folder order it to fail."""

    def __init__(self, log_path: str) -> None:
        self.folder = Path(log_path).parents[1]
        self.index = int(Path(log_path).stem.rpartition("-")[2])
        (self.folder / "logs").mkdir(exist_ok=True)
        with Path(log_path).open("a") as log:
            log.write("loading\n")

    def _misbehave(self, where: str) -> None:
        """Follow an order from the folder: die, raise, stop, or be slow."""
        for order in sorted(self.folder.glob(f"{where}-{self.index}-*")):
            kind, times = order.name.rpartition("-")[2], int(order.read_text())
            if not times:
                continue
            order.write_text(str(times - 1))
            if kind in ("die", "stop"):
                os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
                time.sleep(3600)  # another thread may get the signal first, and this one go on for a moment
            if kind == "slow":
                time.sleep(3)
                continue
            raise {
                "disk": OSError(28, "No space left on device"),
                "port": RuntimeError("[Errno 98] Address already in use"),
                "user": UserError("a damaged file"),
                "bug": NotImplementedError("no kernel for float16\nsee https://example.org"),
                "odd": Unpicklable(threading.Lock(), "unused"),
            }.get(kind, RuntimeError("CUDA error"))

    def location(self) -> tuple[str, int]:
        self._misbehave("location")
        return "here", 2**30

    def pulse(self) -> float:
        return 0.0

    @with_plain_errors
    def start(self, settings: Any, share: Any, most: Any, cache: Any, catch_up: CatchUp) -> CaughtUp:
        assert share[1] == 2, "it was started before its machine was divided"
        assert not hasattr(self, "state"), "it was started twice"
        self._misbehave("start")
        moving = [step for step in catch_up.steps if any(step.coefficients)]
        self.state = BASE + sum(round(1000 * sum(step.coefficients)) for step in moving)
        who = self.folder / f"decoder-{self.index}"
        return CaughtUp(BASE, self.state, len(moving), decoder=who.read_text() if who.exists() else "the loop")

    @with_plain_errors
    def generate(self, weights: Any, prompts: Any, seeds: Any, sampling: Any) -> list[Generation]:
        time.sleep(0.05)
        self._misbehave("generate")
        work = (Work(-1, time.time(), 0.01, 0.05, len(weights)),)
        return [
            Generation([Completion(f"{prompt} {each.member_seed} {self.state}", 1, True) for prompt in prompts], work)
            for each in weights
        ]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        self._misbehave("update")
        self.state += round(1000 * sum(coefficients))
        self._misbehave("updated")
        return self.state

    def save(self, folder: str, exact: bool) -> None:
        self._misbehave("save")
        Path(folder, "weights").write_text(f"{self.state} {exact}")

    def usage(self, seconds: float) -> EngineUsage:
        self._misbehave("usage")
        return EngineUsage(self.index, {})

    def tensor_checksums(self) -> dict[str, int]:
        return {"same": 5, "other": self.state}


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(EnginePool, "engine", QuickEngine)
    made = []

    def pool(timeout: float = 60.0, max_restarts: int = 10) -> EnginePool:
        settings = EngineSettings("model", "auto", "float32", "auto", "cpu", 1, None, 0.5)
        plan = Plan(2, "cpu", 0, 1)
        made.append(EnginePool(plan, settings, 0, 0, tmp_path, timeout=timeout, max_restarts=max_restarts))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def order(folder: Path, where: str, index: int, kind: str, times: int = 1) -> None:
    (folder / f"{where}-{index}-{kind}").write_text(str(times))


def jobs(count: int, mini_batch: int = 8, prompts: int = 2, members: int = 1) -> Iterator[Job[int]]:
    ids = [[prompt + 1, 2] for prompt in range(prompts)]
    for first in range(0, count, members):
        keys = range(first, min(count, first + members))
        yield Job(keys, [Weights(i, 0.1) for i in keys], ids, [0] * prompts, Sampling(4), mini_batch)


def work(pool: EnginePool, history: History, iterations: int = 3, mini_batch: int = 8, members: int = 1) -> list[Any]:
    """Do what a trainer does, and return all answers and checksums."""
    seen: list[Any] = []
    for iteration in range(iterations):
        answers = dict(pool.run(jobs(7, mini_batch, members=members)))
        seen.append([[c.text for c in answers[i].completions] for i in range(7)])
        coefficients = (0.5 + iteration, -0.25)
        checksum = pool.update([1, 2], list(coefficients))
        history.append(Step(iteration, coefficients, False, checksum))
        seen.append(checksum)
    return seen


def begin(pool: EnginePool) -> History:
    history = History(7)
    history.base = pool.start(history).base
    return history


UNDISTURBED: list[Any] = []


@pytest.fixture
def undisturbed(pool) -> list[Any]:
    if not UNDISTURBED:
        quiet = pool()
        UNDISTURBED.extend(work(quiet, begin(quiet)))
        quiet.close()
    return UNDISTURBED


@pytest.mark.parametrize(
    ("where", "kind", "mini_batch", "members"),
    [
        ("update", "die", 8, 1),
        ("updated", "die", 8, 1),
        *[("generate", kind, mini_batch, 1) for kind in ("die", "raise") for mini_batch in (8, 1)],
        *[("generate", kind, mini_batch, 3) for kind, mini_batch in (("die", 8), ("die", 1), ("raise", 1))],
    ],
)
def test_an_engine_that_fails_once_is_replaced_and_changes_nothing(
    where, kind, mini_batch, members, pool, undisturbed, tmp_path
) -> None:
    mine = pool()
    history = begin(mine)
    order(tmp_path, where, 1, kind)
    assert work(mine, history, mini_batch=mini_batch, members=members) == undisturbed
    assert mine.restarts == 1


@pytest.mark.parametrize("slots", [(), (1,), (0, 1)])
def test_engines_that_do_not_use_the_rollout_loop_are_named(slots, pool, tmp_path, capsys) -> None:
    why = "vLLM's own path, because it failed (out of memory)"
    for slot in slots:
        (tmp_path / f"decoder-{slot}").write_text(why)
    begin(pool())
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--rollout")]
    assert (
        told
        == {
            (): [],
            (1,): ["--rollout auto: the loop (engines 0)", f"--rollout auto: {why} (engines 1)"],
            (0, 1): [f"--rollout auto: {why} (engines 0, 1)"],
        }[slots]
    )


def test_members_of_a_batch_share_its_time(pool) -> None:
    mine = pool()
    begin(mine)
    generations = dict(mine.run(jobs(7, 1, members=3)))
    assert sorted(generations) == list(range(7))
    assert [len(generations[i].work) for i in (0, 6)] == [2, 2]  # mini-batches
    assert sum(each.generate_seconds for each in generations.values()) == pytest.approx(3 * 2 * 0.05)
    assert sum(each.switch_seconds for each in generations.values()) == pytest.approx(3 * 2 * 0.01)


def test_the_last_member_is_shared_by_engines_that_have_nothing_else_to_do(pool) -> None:
    mine = pool()
    begin(mine)
    ((_, last),) = mine.run(jobs(1, 2, 17))
    assert {each.engine for each in last.work} == {0, 1}
    assert len(last.work) == 9
    assert [answer.text.split(",")[0] for answer in last.completions] == [f"[{number + 1}" for number in range(17)]


class Later:
    """Has one more turn follow each piece of the first turn, ``seconds`` later."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.waiting = seconds, []

    def answered(self, piece: Any) -> None:
        if piece.job.keys[0][1] == 0:
            self.waiting.append((time.monotonic() + self.seconds, piece))

    def some_ready(self) -> bool:
        return any(when < time.monotonic() for when, _ in self.waiting)

    def awaited(self) -> list[Any]:
        return [piece for _, piece in self.waiting]

    def ready(self) -> list[Any]:
        now = time.monotonic()
        due = [piece for when, piece in self.waiting if when < now]
        self.waiting = [each for each in self.waiting if each[0] >= now]
        return [(piece, turn(piece.job.keys[0][0], 1)) for piece in due]


def turn(member: int, number: int) -> Job[Any]:
    key, prompts = (member, number), [[member, number]]
    return Job([key], [Weights(member, 0.1)], prompts, [0], Sampling(4), 8, shared_prompts=number == 0)


@pytest.mark.parametrize("kind", ["slow", "die"])
def test_jobs_that_follow_are_done_as_soon_as_an_engine_is_free(kind, pool, tmp_path) -> None:
    """Engine 0 takes 3 s, or dies; engine 1 does all that follows, whenever it becomes ready, and engine 0's job."""
    mine = pool()
    begin(mine)
    order(tmp_path, "generate", 0, kind)
    later, seen, began = Later(0.3), [], time.monotonic()
    for piece, (generation,) in mine.run_pieces((turn(member, 0) for member in range(4)), later):
        later.answered(piece)
        seen.append((piece.job.keys[0], generation.completions[0].text, time.monotonic() - began))
    assert sorted(key for key, *_ in seen) == [(member, number) for member in range(4) for number in range(2)]
    assert all(text == f"{[member, number]} {member} {BASE}" for (member, number), text, _ in seen)
    assert kind == "die" or max(when for *_, when in seen) < 2.5


@pytest.mark.parametrize("where", ["generate", "update"])
def test_a_slow_engine_holds_up_neither_generations_nor_updates_and_catches_up(
    where, pool, undisturbed, tmp_path, capsys
) -> None:
    mine = pool()
    history = begin(mine)
    order(tmp_path, where, 1, "slow", times=99)
    with within(7.5):  # an iteration takes 3 s if it waits
        assert work(mine, history) == undisturbed
    assert capsys.readouterr().out.count(" has not done its work after ") == (where == "generate")
    order(tmp_path, where, 1, "slow", times=0)
    engines: set[int] = set()
    deadline = time.monotonic() + 20
    while 1 not in engines and time.monotonic() < deadline:
        found = dict(mine.run(jobs(7)))
        assert all(each.completions[0].text.endswith(f" {i} {history.checksum}") for i, each in found.items())
        engines = {each.work[0].engine for each in found.values()}
    assert 1 in engines
    assert mine.update([1], [0.5]) == history.checksum + 500
    assert mine.restarts == 0


def test_a_slow_engine_that_dies_is_replaced(pool, undisturbed, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    order(tmp_path, "generate", 1, "slow")
    pid = _pid(mine._slots[1].actor)
    threading.Timer(2.0, os.kill, [pid, signal.SIGKILL]).start()
    seen = work(mine, history, 2)
    while mine.restarts == 0 or not mine._slots[1].ready:
        mine._wait_for_a_start(list(mine._starting))
    assert seen == undisturbed[: len(seen)]
    assert mine.update([1], [0.5]) == history.checksum + 500
    assert mine.restarts == 1


@pytest.mark.parametrize(("switch", "stays"), [(5.0, True), (0.0, False)])
def test_an_engine_waits_for_what_follows_as_long_as_a_switch_takes(switch, stays, pool, monkeypatch) -> None:
    monkeypatch.setattr(WorkScheduler, "switch_seconds", switch)
    mine = pool()
    begin(mine)
    later, order = Later(0.1), {0: [], 1: []}
    for piece, (generation,) in mine.run_pieces((turn(member, 0) for member in range(6)), later):
        later.answered(piece)
        order[generation.work[0].engine].append(piece.job.keys[0])
    assert sum(map(len, order.values())) == 12
    following = [pair for each in order.values() for pair in zip(each[::2], each[1::2], strict=False)]
    assert all(one[0] == two[0] and (one[1], two[1]) == (0, 1) for one, two in following) is stays


def test_a_silent_engine_is_replaced_and_changes_nothing(pool, undisturbed, tmp_path, capsys) -> None:
    mine = pool(timeout=2.0)
    history = begin(mine)
    order(tmp_path, "generate", 0, "stop")
    assert work(mine, history) == undisturbed
    while mine.restarts == 0:  # engine 1 has done its work meanwhile
        mine._wait_for_a_start(list(mine._starting))
    assert (
        "engine 0 made no progress for 2 s (--engine-timeout); replacing it (1 of at most 10)"
        in capsys.readouterr().out
    )


def test_an_engine_that_dies_while_idle_or_starting_is_replaced(pool, undisturbed, tmp_path) -> None:
    order(tmp_path, "location", 1, "die")
    order(tmp_path, "start", 0, "die", times=2)
    mine = pool()
    history = begin(mine)
    assert mine.restarts == 3
    idle = mine._slots[1].actor
    pid = _pid(idle)
    os.kill(pid, signal.SIGKILL)
    assert work(mine, history) == undisturbed
    assert mine.restarts == 4


def test_an_idle_engine_that_dies_does_not_keep_the_driver_busy(pool, tmp_path, capsys) -> None:
    mine = pool(timeout=1.0)
    begin(mine)
    rounds, wait = [], ray_wait()
    order(tmp_path, "generate", 0, "slow")
    os.kill(_pid(mine._slots[1].actor), signal.SIGKILL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.wait", lambda *args, **named: rounds.append(None) or wait(*args, **named))
        assert len(dict(mine.run(jobs(1)))) == 1
    assert len(rounds) < 100
    assert len(dict(mine.run(jobs(7)))) == 7
    assert "engine 1 died; replacing it" in capsys.readouterr().out


def ray_wait() -> Any:
    import ray

    return ray.wait


def test_an_engine_whose_port_another_process_took_is_replaced(pool, tmp_path) -> None:
    order(tmp_path, "start", 0, "port")
    mine = pool()
    begin(mine)
    assert mine.restarts == 1


def test_an_os_error_outside_of_saving_is_an_engine_failure(pool, undisturbed, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    order(tmp_path, "update", 1, "disk")
    assert work(mine, history) == undisturbed
    assert mine.restarts == 1


def _pid(actor: Any) -> int:
    import ray

    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def test_while_the_driver_is_busy_no_engine_counts_as_silent(pool) -> None:
    mine = pool(timeout=1.0)
    begin(mine)
    time.sleep(2)
    assert len(dict(mine.run(jobs(4)))) == 4
    for _ in mine.run(jobs(4)):
        time.sleep(0.4)
    assert mine.restarts == 0


def test_engines_that_die_repeatedly_end_the_run_with_the_reason(pool, tmp_path) -> None:
    mine = pool(max_restarts=3)
    history = begin(mine)
    order(tmp_path, "generate", 0, "die", times=99)
    order(tmp_path, "generate", 1, "die", times=99)
    with pytest.raises(
        RunError, match=r"engine \d died, and 3 were replaced already \(--max-restarts\)\nlast lines of .*log:\n  load"
    ):
        work(mine, history)
    with pytest.raises(RunError, match="--max-restarts"):
        mine.update([1], [0.5])


def test_a_job_that_fails_on_two_engines_ends_the_run_at_once(pool, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    order(tmp_path, "generate", 0, "raise", times=99)
    order(tmp_path, "generate", 1, "raise", times=99)
    with pytest.raises(RunError, match=r"engine \d failed \(RuntimeError: CUDA error\)\nlast lines"):
        work(mine, history)
    assert mine.restarts <= 3


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("raise", RunError, "engine 1 failed (RuntimeError: CUDA error)"),
        ("odd", RunError, "engine 1 failed (Unpicklable: the true reason)"),
        ("user", UserError, "a damaged file"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_run_at_once(kind, error, text, pool, tmp_path) -> None:
    order(tmp_path, "start", 1, kind, times=99)
    mine = pool()
    with pytest.raises(error) as caught:
        begin(mine)
    assert str(caught.value).splitlines()[0] == text
    assert mine.restarts == 0


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("bug", RunError, "failed (NotImplementedError: no kernel for float16 see https://example.org)"),
        ("odd", RunError, "failed (Unpicklable: the true reason)"),
        ("user", UserError, "a damaged file"),
    ],
)
def test_a_first_generation_that_every_engine_would_fail_is_not_repeated(kind, error, text, pool, tmp_path) -> None:
    for index in range(2):
        order(tmp_path, "generate", index, kind, times=99)
    mine = pool()
    begin(mine)
    with pytest.raises(error) as caught:
        dict(mine.run(jobs(4)))
    assert str(caught.value).splitlines()[0].endswith(text)
    assert mine.restarts == 0


def test_a_later_generation_that_fails_once_is_repeated(pool, undisturbed, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    seen = work(mine, history, 1)
    order(tmp_path, "generate", 1, "bug")
    assert [*seen, *work(mine, history, 2)][:2] == undisturbed[:2]
    assert mine.restarts == 1


def test_a_full_disk_is_an_os_error_and_replaces_no_engine(pool, tmp_path) -> None:
    mine = pool()
    begin(mine)
    order(tmp_path, "save", 0, "disk")
    with pytest.raises(OSError, match="No space left"):
        mine.save(tmp_path)
    assert mine.restarts == 0
    order(tmp_path, "save", 0, "die")
    mine.save(tmp_path, exact=True)
    assert (tmp_path / "weights").read_text() == f"{BASE} True"
    assert mine.restarts == 1


@pytest.mark.parametrize("fault", ["none", "slow", "raise", "die"])
def test_usage_that_cannot_be_measured_neither_stops_nor_delays(fault, pool, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    if fault != "none":
        order(tmp_path, "usage", 1, fault)
    with within(2.5):
        found = mine.usage(1.0)
    assert found == ([EngineUsage(0, {}), EngineUsage(1, {})] if fault == "none" else [])
    assert len(work(mine, history, 1)) == 2


def test_weights_that_differ_stop_the_run_and_leave_evidence(pool, tmp_path) -> None:
    import ray

    mine = pool()
    history = begin(mine)
    work(mine, history, 1)
    ray.get(mine._slots[1].actor.update.remote([9], [0.125]))
    with pytest.raises(
        RunError, match=r"weights differ after the update of iteration 1 \(engine 0: \w{16}, engine 1: "
    ):
        mine.update([1], [0.5])
    evidence = json.loads((tmp_path / "checksum-mismatch.json").read_text())
    assert evidence["iteration"] == 1
    tensors = {index: engine["tensors"] for index, engine in evidence["engines"].items()}
    assert [list(each) for each in tensors.values()] == [["other"], ["other"]]
    assert tensors["0"] != tensors["1"]


def test_a_replacement_with_other_weights_stops_the_run(pool, tmp_path) -> None:
    mine = pool()
    history = begin(mine)
    work(mine, history, 2)
    history.steps[0] = Step(0, (9.0,), False, history.steps[0].checksum)  # as if the log were another run's
    order(tmp_path, "generate", 0, "die")
    with pytest.raises(RunError, match=r"engine 0 was replaced.*instead of"):
        dict(mine.run(jobs(400)))  # the replacement joins before that is done


def test_a_closed_pool_leaves_no_processes_or_threads(pool) -> None:
    mine = pool()
    begin(mine)
    pids = [_pid(slot.actor) for slot in mine._slots]
    threads = threading.active_count()
    mine.close()
    mine.close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids)
    assert threading.active_count() <= threads
