"""Heartbeat: its age, its sharing between processes, and an engine that beats."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.engines.actor import Engine
from esplug.engines.messages import Sampling, Weights
from esplug.engines.rollout_answers import RolloutAnswers
from esplug.engines.vllm_answers import VLLMAnswers
from esplug.vllm_worker.extension import MasterSetup
from esplug.vllm_worker.heartbeat import Heartbeat
from esplug.weights.master import MasterWeights


def test_it_ages_between_beats_but_not_at_rest() -> None:
    heart = Heartbeat()
    assert heart.age() == 0.0
    heart.beat()
    time.sleep(0.2)
    before = heart.age()
    assert before >= 0.2
    heart.beat()
    assert heart.age() < before
    time.sleep(0.05)
    heart.rest()
    assert heart.age() == 0.0


def test_other_processes_share_it() -> None:
    heart = Heartbeat()
    heart.beat()
    time.sleep(0.2)
    module = "esplug.vllm_worker.heartbeat"
    code = f"from {module} import Heartbeat; heart = Heartbeat({heart.place!r}); print(heart.age()); heart.beat()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) >= 0.2
    assert heart.age() < float(done.stdout)


class Hanging:
    """A vLLM that calls ``hang`` in one of its methods."""

    def __init__(self, at: str, hang: Callable[[], None]) -> None:
        self.at, self.hang = at, hang

    def collective_rpc(self, method: str, args: Any = ()) -> list[Any]:
        if method == self.at:
            self.hang()
        answers = {
            "es_catch_up": CaughtUp(1, 1),
            "es_tensor_checksums": {},
            "es_take_undefined": [0, 0, 0],
            "es_roll_out": ([], [0]),
        }
        return [answers.get(method, 0)]

    def reset_prefix_cache(self) -> None:
        pass

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(eos_token_id=2, backend_tokenizer=object())

    def generate(self, prompts: Any, parameters: Any, **named: Any) -> list[Any]:
        return []


CALLS: dict[str, Callable[[Engine, Path], Any]] = {
    "es_catch_up": lambda engine, _: engine.catch_up(CatchUp(0)),
    "es_set_weights": lambda engine, _: engine.generate([Weights(1, 0.1)], [], [], Sampling(4)),
    "es_set_members": lambda engine, _: engine.generate([Weights(1, 0.1), Weights(2, 0.1)], [], [], Sampling(4)),
    "es_take_undefined": lambda engine, _: engine.generate([Weights()], [], [], Sampling(4)),
    "es_roll_out": lambda engine, _: engine.generate([Weights()], [], [], Sampling(4)),
    "es_update": lambda engine, _: engine.update([1], [0.5]),
    "es_save": lambda engine, folder: engine.save(str(folder), True),
    "es_tensor_checksums": lambda engine, _: engine.tensor_checksums(),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_pulse_of_a_hanging_engine_ages_in_every_call(call, tmp_path) -> None:
    from vllm import SamplingParams, TokensPrompt  # noqa: F401  # importing them can take longer than this test waits

    hanging, release = threading.Event(), threading.Event()
    engine = Engine(None)
    engine._master_setup = MasterSetup("model", "float32", "auto", 0.1, None, [[0]], engine._heartbeat.place)

    def hang() -> None:
        hanging.set()
        release.wait(60)

    engine._llm, engine._low_rank = Hanging(call, hang), 1 if call == "es_set_members" else None
    engine._answering = VLLMAnswers(engine._llm, engine._heartbeat, None, share_prefix=True)
    if call == "es_roll_out":
        engine._answering = RolloutAnswers(engine._llm, engine._answering)
    assert engine.pulse() == 0.0
    thread = threading.Thread(target=CALLS[call], args=(engine, tmp_path))
    thread.start()
    assert hanging.wait(60)
    time.sleep(0.1)
    assert engine.pulse() >= 0.1
    release.set()
    thread.join(60)
    assert engine.pulse() == 0.0


def test_master_weights_beat_in_every_operation(tiny_model) -> None:
    beats: list[None] = []
    master = MasterWeights.load(tiny_model, beat=lambda: beats.append(None))
    for work in (
        lambda: master.update([1, 2], [0.5, 0.5]),
        master.checksum,
        lambda: list(master.perturbed(1, 0.1)),
        lambda: master.overwrite(tiny_model),
    ):
        assert beats
        beats.clear()
        work()
    assert beats


def test_save_removes_the_files_of_an_engine_that_died_saving(tmp_path) -> None:
    engine = Engine(None)
    engine._llm = Hanging("es_save", lambda: (tmp_path / "model.safetensors").write_text("whole"))
    for name in ("model-00001-of-00002.safetensors", ".tmpAbCdEf", "model.safetensors.index.json", "config.json"):
        (tmp_path / name).touch()
    engine.save(str(tmp_path), True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
