"""Faults for whole runs. Each function injects one, and asserts how the run reacts during and after it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from esplug.checkpoints import seed_log
from esplug.checkpoints.folders import newest_first, verify
from esplug.checkpoints.history import History
from esplug.engines import Job
from esplug.engines.messages import EngineSettings, Generation, Sampling, Weights
from esplug.errors import RunError, UserError
from esplug.planning.placement import Plan
from esplug.trainer import EvolutionStrategiesTrainer
from esplug.utils.cores import usable_cores
from tests.helpers.training import KeptEngines, Trainer
from tests.integration.faults.harness import EVAL_FREQ, Desk, Launched, ballast, check, done, pause, reach, small_disk

RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")

# --- engines ---------------------------------------------------------------------------------------------------


def hit_engines(launched: Launched, run: Path, phases: Sequence[str], number: int, draw: Random) -> int:
    """Send a signal to one of two engines, or both, at a random moment of each phase. Return the number of signals."""
    before, hit = launched.text.count("is there again"), 0
    for phase in phases:
        if phase == "start":
            launched.until(lambda: len(launched.engines()) == 2, "two engines")
            pause(launched, draw.uniform(2, 8))
        else:
            reach(launched, run, "training" if phase == "both" else phase, draw)
        engines = launched.engines()
        assert len(engines) == 2, f"{len(engines)} engines\n{launched.text}"
        victims = draw.sample(engines, 2 if phase == "both" else 1)
        for victim in victims:
            victim.send_signal(number)
        hit += len(victims)
        launched.until(lambda: launched.text.count("is there again") >= before + hit, "a replacement")  # noqa: B023
        assert launched.text.count("; replacing it") == before + hit, launched.text
    return hit


def exhaust_engines(launched: Launched, restarts: int) -> None:
    """Kill engines as soon as they start, until the run gives up after ``restarts`` replacements."""

    def strike() -> None:
        for engine in launched.engines():
            with suppress(psutil.Error):
                engine.kill()
        time.sleep(0.1)

    launched.until(strike, "the end")
    assert launched.end() == 1, launched.text
    text = launched.text
    assert text.count("; replacing it") == restarts, text
    error = text[text.index("error: engine ") :]
    assert re.match(rf"error: engine \d died, and {restarts} were replaced already \(--max-restarts\)", error), error
    assert re.search(r"last lines of \S+/logs/engine-\d\.log:", error), error
    assert "Traceback" not in text[: text.index("error: engine ")], text
    assert launched.left() == []


def disagree(model: Path, folder: Path) -> Counter[str]:
    """Update the weights of one engine alone, and expect the run to notice the mismatch."""
    import ray

    class Disagreeing(EvolutionStrategiesTrainer):
        def train_step(self, iteration: int) -> None:
            if iteration == 1:
                ray.get(self.engines._slots[1].actor.update.remote([1], [0.5]))
            super().train_step(iteration)

    trainer = Disagreeing(**_settings(model, folder) | {"n_vllm_engines": 2, "num_iterations": 3})
    with pytest.raises(RunError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "\n" not in message, message
    assert "the engines' weights differ after the update of iteration 1 (engine 0: " in message, message
    assert ", engine 1: " in message, message
    evidence_path = trainer.run_dir.path / "checksum-mismatch.json"
    assert str(evidence_path) in message, message
    evidence = json.loads(evidence_path.read_text())
    assert evidence["iteration"] == 1, evidence
    tensors = [evidence["engines"][str(engine)]["tensors"] for engine in range(2)]
    assert tensors[0].keys() == tensors[1].keys(), evidence
    assert "model.embed_tokens.weight" in tensors[0], evidence
    assert all(tensors[0][name] != tensors[1][name] for name in tensors[0]), evidence
    assert len(seed_log.read(trainer.run_dir.seed_log).steps) == 1
    return Counter()


# --- the driver ------------------------------------------------------------------------------------------------


def interrupt(launched: Launched, number: int, *, twice: bool = False) -> bool:
    """Send the driver a signal and check how it ends. Return whether the signal came before the run's own end."""
    if not launched.running:
        return False
    launched.signal(number)
    if twice:
        time.sleep(0.05)
        launched.signal(number)
    return ended_by(launched, number)


def ended_by(launched: Launched, number: int) -> bool:
    """Assert that a signal ends the driver, or that the run was ending anyway. Return whether the signal ended it."""
    code = launched.end(90)
    expected = [-number, 0]  # the first if the signal arrives after Python has ended
    if number != signal.SIGKILL:
        expected.append(128 + number)
    assert code in expected, f"exit status {code} instead of {expected}\n{launched.text[-3000:]}"
    assert "Traceback" not in launched.text, launched.text
    # Two of Ray's agents notice only after a minute that they are orphans; `nothing_left` waits for them.
    left = launched.left(10, RAY_AGENTS) if number == signal.SIGKILL else launched.left()
    assert left == [], f"processes left: {left}"
    return code != 0


def contend(desk: Desk, run: Path, owner: int) -> float:
    """Resume a run that another process is running. Return the seconds until it is refused."""
    started = time.monotonic()
    loser = desk.resume(run)
    assert loser.end(60) == 2, loser.text
    owner_is_named(loser.text, owner)
    return time.monotonic() - started


def owner_is_named(text: str, owner: int) -> None:
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert f"in use by process {owner} of " in line, line
    assert f" on {socket.gethostname()} since " in line, line


_CONTENDER = """
import sys
from pathlib import Path
from esplug.errors import UserError
from esplug.utils.file_lock import locked
sys.stdin.readline()
try:
    with locked(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(f"error: {error}", flush=True)
"""


def race_for_lock(folder: Path) -> Counter[str]:
    """Let two processes lock one directory at the same moment."""
    command = [sys.executable, "-c", _CONTENDER, folder]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
    for process in both:
        process.stdin.flush()
    said = {process.pid: process.stdout.readline() for process in both}
    for process in both:
        process.communicate("end\n", timeout=30)
    (winner,) = [pid for pid, line in said.items() if line == "won\n"]
    (loser,) = [line for line in said.values() if line != "won\n"]
    owner_is_named(loser, winner)
    return Counter()


# --- a cluster that outlives its runs --------------------------------------------------------------------------


@contextmanager
def ray_cluster(desk: Desk) -> Iterator[str]:
    """Start Ray with `ray start`, as for a cluster; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    environment = {"RAY_AUTH_MODE": "disabled"}
    cluster = Launched(command, desk.folder, os.environ | environment, cores=usable_cores(), terminal=False)
    try:
        os.environ |= environment
        cluster.until(lambda: "Ray runtime started" in cluster.text, "a cluster")
        yield f"127.0.0.1:{port}"
    finally:
        os.environ.pop("RAY_AUTH_MODE", None)
        cluster.kill()


_FREE = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 30
while ray.available_resources() != ray.cluster_resources() and time.monotonic() < deadline:
    time.sleep(0.5)
groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
print(groups, ray.available_resources() == ray.cluster_resources())
"""


def all_given_back(address: str) -> None:
    """Assert that all of a cluster's resources are free."""
    done = subprocess.run([sys.executable, "-c", _FREE, address], capture_output=True, text=True, timeout=90)
    assert done.stdout == "[] True\n", done.stdout + done.stderr


# --- NaN and infinity in weights -------------------------------------------------------------------------------


@contextmanager
def float16_engine(model: Path, folder: Path) -> Iterator[KeptEngines]:
    """Start one engine in float16, whose maximum is 65504, with a copy of the model in ``folder / "model"``."""
    import ray

    shutil.copytree(model, folder / "model")
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        settings = EngineSettings(str(folder / "model"), "float16", "float32", "auto", "cpu", 1, 256, memory_share=0.01)
        engines = KeptEngines(Plan(1, "cpu", 0, 1), settings, 0, 2**28, folder)
        engines.start(History(0))
        yield engines
    finally:
        ray.shutdown()


def overflow_members(engines: KeptEngines, times: int) -> None:
    """Generate with weights or activations that overflow; the next generation must not be affected."""
    prompts = [[5, 6, 7, 8 + i] for i in range(4)]

    def answer(weights: Weights, temperature: float = 0.0) -> Generation:
        jobs = [Job([0], [weights], prompts, [1, 2, 3, 4], Sampling(12, temperature), 8)]
        ((_, generation),) = engines.run(jobs)
        return generation

    tame = [Weights(), Weights(7, 0.02)]
    fresh = {weights: answer(weights).completions for weights in tame}
    for number in range(times):
        scale, temperature = ((10.0, 0.0), (1e5, 0.0), (10.0, 1.0), (1e5, 1.0))[number % 4]
        assert answer(Weights(number, scale), temperature).undefined > 0, f"scale {scale} does not overflow"
        tame.reverse()
        for weights in tame:
            generation = answer(weights)
            assert generation.undefined == 0
            assert generation.completions == fresh[weights], f"affected by scale {scale}"


def train_with_overflow(engines: KeptEngines, folder: Path, broken: set[int]) -> Path:
    """Train for one iteration in which some members overflow. Return the run's directory."""
    run = engines.run

    def overflowing(jobs: Any) -> Any:
        return run(replace(job, weights=[_broken(job.weights[0])]) if job.keys[0] in broken else job for job in jobs)

    trainer = Trainer(**_settings(folder / "model", folder) | {"n_vllm_engines": 1, "num_iterations": 1})
    trainer.kept = engines
    vars(engines)["run"] = overflowing
    try:
        return trainer.fit().run_dir
    finally:
        del vars(engines)["run"]


def _broken(weights: Weights) -> Weights:
    return Weights(weights.member_seed, 10.0)


def overflow(model: Path, folder: Path, times: int) -> Counter[str]:
    """Inject overflow: in one engine, in some members of a run, in all members, and in the base model."""
    with float16_engine(model, folder) as engines:
        overflow_members(engines, times)

        run = train_with_overflow(engines, folder, {1, 2})
        (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert row["train/labels/error:NaN"] == 2 / 4, row
        assert row["train/rewards_failed"] == 2 * 4, row
        members = json.loads((run / "train-output" / "iteration0.json").read_text())["members"]
        assert [member["reward"] == 0 for member in members] == [False, True, True, False], members

        message = _error(RunError, engines, folder, {0, 1, 2, 3})
        assert message.startswith("every reward failed (error:NaN x16)"), message
        assert "--sigma" in message, message
        _spoil(folder / "model")
        message = _error(UserError, engines, folder, set())
        assert message.startswith(f"{folder / 'model'}: 1 tensors hold NaN or infinity, model.norm.weight first"), (
            message
        )
    return Counter()


def _error(kind: type[Exception], engines: KeptEngines, folder: Path, broken: set[int]) -> str:
    with pytest.raises(kind) as caught:
        train_with_overflow(engines, folder, broken)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def _spoil(model: Path) -> None:
    """Write NaN into a model."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _settings(model: Path, folder: Path) -> dict[str, Any]:
    return {
        "model_name": str(model),
        "sigma": 0.02,
        "alpha": 0.05,
        "population_size": 4,
        "max_tokens": 8,
        "max_model_len": 256,
        "reward_function": lambda output, target: sum(ord(c) % 32 for c in output) / (1 + len(output)) + target + 1,
        "train_dataloader": [([f"Number {i}" for i in range(4)], list(range(4)))],
        "use_gpus": "none",
        "logging": ["jsonl"],
        "output_directory": str(folder / "runs"),
    }


# --- disks and files -------------------------------------------------------------------------------------------


def fill_disk(desk: Desk, undisturbed: Path, draw: Random, times: int) -> Counter[str] | None:
    """Fill a run's disk and free it after some iterations, ``times`` times; with 0, keep it full until the run ends.

    Returns:
        What was lost; ``None`` if no disk can be mounted.
    """
    with small_disk(desk.folder / f"disk-{draw.randrange(10**9)}") as disk:
        if disk is None:
            return None
        run, iterations = disk / "run", EVAL_FREQ * (2 * times + 3)
        launched = desk.start(run, iterations)
        launched.until(lambda: done(run) >= 3, "iteration 3")
        size = sum(file.stat().st_size for file in newest_first(run / "checkpoints")[0][1].iterdir())
        for number in range(times):
            before = launched.text.count("\niteration ")
            with ballast(disk, size * number // times):
                launched.until(lambda before=before: launched.text.count("\niteration ") >= before + 3, "3 iterations")
                _last_is_good(run)
            before = done(run)
            launched.until(lambda before=before: done(run) > before, "an iteration written")
        if not times:
            with ballast(disk, draw.randrange(size // 2)):
                assert launched.end() == 1, launched.text
                _last_is_good(run)
            error = launched.text[launched.text.index("error: ") :]
            assert str(run) in error, error
            assert f"free some space, then: esplug train --resume {run}" in error, error
            assert launched.left() == []
            said, launched = launched.text, desk.resume(run)
        else:
            said = launched.text
        assert re.search(rf"{re.escape(str(run))}\S*: cannot be written \(No space left on device\)", said), said
        assert launched.end() == 0, launched.text
        return Counter({"records and rows of metrics not written": check(run, undisturbed, iterations, gaps=True)})


def _last_is_good(run: Path) -> None:
    """Assert that the seed log and all checkpoints are readable, except one that is being removed."""
    seed_log.read(run / "seeds.log")
    saved = newest_first(run / "checkpoints")
    assert saved
    for _, folder in saved:
        try:
            verify(folder)
        except UserError:
            assert not folder.exists(), f"{folder} is damaged"


def damage(path: Path, draw: Random) -> str:
    """Flip one byte of a file, or truncate it. Return a description."""
    good = path.read_bytes()
    place = draw.randrange(len(good))
    if draw.random() < 0.5:
        path.write_bytes(good[:place])
        return f"cut at {place} of {len(good)}"
    path.write_bytes(good[:place] + bytes([good[place] ^ draw.randrange(1, 256)]) + good[place + 1 :])
    return f"byte {place} of {len(good)} flipped"


def catch_up_damaged(undisturbed: Path, model: Path, folder: Path, draw: Random) -> Counter[str]:
    """Damage a checkpoint file or the seed log of a run, and catch up as an engine does."""
    from esplug.weights.master import MasterWeights

    run = folder / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(undisturbed / "checkpoints", run / "checkpoints")
    shutil.copy(undisturbed / "seeds.log", run)
    log_path, steps = run / "seeds.log", seed_log.read(run / "seeds.log").steps
    original = log_path.read_bytes()
    saved = newest_first(run / "checkpoints")
    files = [file for _, folder in saved for file in sorted(folder.iterdir())]
    path = draw.choice([log_path, *files])
    what = f"{path}: {damage(path, draw)}"
    if _headless(log_path):
        with pytest.raises(UserError, match=re.escape(str(log_path))):
            seed_log.SeedLog.open(log_path)
        return Counter({"headers of a log, refused": 1})
    with seed_log.SeedLog.open(log_path) as log:
        recorded, torn = log.steps, log.torn
        listed = [(iteration, str(folder)) for iteration, folder in saved]
        history = History(log.header.run_seed, log.header.base.weights_checksum, tuple(recorded), lambda: listed)
        caught_up = MasterWeights.load(model).catch_up(model, history.catch_up())
        assert recorded == steps[: len(recorded)], what
        assert caught_up.checksum == history.checksum, what
    if path == log_path:
        between_records = original.startswith(log_path.read_bytes())  # a cut between records cannot be detected
        assert log.damage or torn or between_records, what
        return Counter({"iterations of a log, made again": len(steps) - len(recorded)})
    with pytest.raises(UserError, match=re.escape(str(path))):
        verify(path.parent)
    if path.suffix == ".safetensors" and path.parent == saved[0][1]:
        assert caught_up.damaged == () or caught_up.damaged[0][0] == str(path.parent), what
    return Counter()


def _headless(log: Path) -> bool:
    """Return whether the log's header is damaged."""
    try:
        seed_log.read(log, 0)
    except UserError:
        return True
    return False


def damage_run(run: Path, draw: Random, *, log: bool, checkpoints: int) -> list[Path]:
    """Flip a byte in an early record of a run's seed log, and in the weights of its newest checkpoints.

    Returns:
        The paths that a resumed run must name.
    """
    named = []
    if log:
        path = run / "seeds.log"
        content = bytearray(path.read_bytes())
        first = content.index(b"\n") + 1
        content[draw.randrange(first, first + (len(content) - first) // 2)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        named.append(path)
    for _, folder in newest_first(run / "checkpoints")[:checkpoints]:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-draw.randrange(1, len(content) // 2)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        if not log:  # with a damaged log, the checkpoint may be newer than the log
            named.append(folder)
    return named
