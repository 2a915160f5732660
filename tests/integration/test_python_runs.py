"""Runs from Python on real Ray and vLLM. They share engines, which are given the base weights again."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from esplug import StopRun
from esplug.checkpoints.history import History
from esplug.dry_run.probe import Probe
from esplug.engines.messages import EngineSettings
from esplug.engines.pool import EnginePool
from esplug.errors import RunError
from esplug.planning.cost import times_of, work_of
from esplug.planning.placement import Plan
from esplug.report.page import render
from esplug.report.run_data import read_run
from esplug.weights.master import MasterWeights
from tests.helpers.processes import command_of, descendants, lives
from tests.helpers.run_files import read_iteration, read_metrics, record_of, strict_json
from tests.helpers.training import QUESTIONS, TARGETS, KeptEngines, Trainer, tiny_run

pytestmark = pytest.mark.vllm

LONG = [f"Number {i}" for i in range(40)]  # more prompts than one evaluation job takes
SHARED = "These words begin all prompts, and of one member's they are computed only once: 3, 5, 8. Q: {} A:"


@pytest.fixture(scope="module")
def ray_of_four() -> Iterator[None]:
    """Ray that believes in four cores, so that engines on one core and on two can be there together."""
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _engines(plan: Plan, model: Path, logs: Path) -> Iterator[KeptEngines]:
    settings = EngineSettings(str(model.resolve()), "auto", "float32", "auto", "cpu", 1, 256, memory_share=0.01)
    engines = KeptEngines(plan, settings, 0, 2**28, logs)
    engines.start(History(0))
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def one_engine(ray_of_four, tiny_model, tmp_path_factory) -> Iterator[KeptEngines]:
    yield from _engines(Plan(1, "cpu", 0, 2), tiny_model, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two_engines(ray_of_four, tiny_model, tmp_path_factory) -> Iterator[KeptEngines]:
    yield from _engines(Plan(2, "cpu", 0, 1), tiny_model, tmp_path_factory.mktemp("two"))


@pytest.fixture
def start(tiny_model, tmp_path):
    """Return a function that makes a trainer for a tiny run on given engines."""

    def start(engines: KeptEngines, kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
        trainer = kind(**tiny_run(tiny_model, tmp_path / "runs", len(engines)) | settings)
        trainer.kept = engines
        return trainer

    return start


@pytest.mark.parametrize(
    "settings",
    [
        {"antithetic": True, "population_size": 6, "momentum": 0.7, "template_function": SHARED.format},
        {"train_temperature": 1.0, "train_top_p": 0.9},
    ],
    ids=["mirrored, greedy and cached", "sampled"],
)
def test_number_of_engines_and_mini_batch_size_change_nothing(start, one_engine, two_engines, settings) -> None:
    data = {"eval_dataloader_dict": {"short": [(QUESTIONS, TARGETS)], "long": [(LONG, list(range(40)))]}}
    common = settings | data | {"num_iterations": 2, "eval_freq": 1}
    arms = [(one_engine, 512), (one_engine, 7), (two_engines, 7), (two_engines, 512)]
    results = [start(engines, mini_batch_size=size, **common).fit() for engines, size in arms]
    records = [record_of(result) for result in results]
    assert [name for name, _ in records[0]] == [
        *(f"model_eval_task{split}_iteration{i}.json" for split in ("long", "short") for i in range(3)),
        *("iteration0.json", "iteration1.json"),
    ]
    for iteration in range(2):
        members = read_iteration(results[0].run_dir, iteration)["members"]
        assert len({member["reward"] for member in members}) == len(members)  # a mix-up of members would show
        assert all(member["coefficient"] for member in members)
    for record in records[1:]:
        assert record == records[0]
    assert len({result.checksum for result in results}) == 1


class Interrupted(Trainer):
    """A trainer that is interrupted in its second iteration, after the conversations of one member."""

    def train_step(self, iteration):
        self._left = 2 if iteration == 1 else 100
        super().train_step(iteration)

    def _grade(self, generation, targets):
        self._left = getattr(self, "_left", 100) - 1
        if not self._left:
            raise KeyboardInterrupt
        return super()._grade(generation, targets)


def reply(messages: list[dict[str, str]], target: int) -> Any:
    """End one conversation in five, reply at length in another, and otherwise shortly."""
    kind = sum(map(ord, messages[-1]["content"])) % 5
    return None if kind == target % 5 else [{"role": "user", "content": f"No, {kind}. " * (9 if kind == 4 else 1)}]


@pytest.mark.parametrize("chat", [False, True])
def test_engines_and_interruptions_change_no_conversation(chat, start, one_engine, two_engines) -> None:
    def reward(output: str, target: int, messages: list[dict[str, str]]) -> float:
        assert messages[-1] == {"role": "assistant", "content": output}
        said = "".join(message["content"] for message in messages)
        return sum(ord(letter) % 32 for letter in said) / (1 + len(said))

    def template(question: str) -> Any:
        return [{"role": "user", "content": question}] if chat else f"Q: {question} A:"

    settings = {"turn_function": reply, "reward_function": reward, "template_function": template, "max_turns": 4}
    data = {"eval_dataloader_dict": {"all": [(QUESTIONS, TARGETS)]}, "dtype": "float32", "train_temperature": 0.8}
    common = settings | data | {"num_iterations": 2, "eval_freq": 1, "mini_batch_size": 5}
    arms = [(one_engine, Trainer), (two_engines, Trainer), (two_engines, Interrupted)]
    results = []
    for number, (engines, kind) in enumerate(arms):
        trainer = start(engines, kind, experiment_name=f"arm{number}", **common)
        if kind is Interrupted:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
            again = start(engines, experiment_name=f"arm{number}", **common)
            results.append(again.fit(resume=trainer.run_dir.path))
        else:
            results.append(trainer.fit())
    assert len({result.checksum for result in results}) == 1
    records = [record_of(result) for result in results]
    assert records[1:] == records[:1] * 2

    metrics = read_iteration(results[0].run_dir, 1)["metrics"]
    assert 1 < metrics["train/turns/mean"] < 4
    ways = {way: metrics[f"train/ended/{way}"] for way in ("task", "max_turns", "too_long", "failed")}
    assert sum(ways.values()) == pytest.approx(1)
    assert ways["task"] > 0
    assert ways["too_long"] + ways["max_turns"] > 0
    (split,) = results[0].evaluations[-1].splits
    assert split.figures["turns"].mean > 1
    for sample in split.samples:
        roles = [message["role"] for message in sample.conversation]
        assert roles == [("assistant", "user")[number % 2] for number in range(2 * sample.turns - 1)]
        assert sample.conversation[-1]["content"] == sample.output
    page = render([read_run(results[0].run_dir)], [])
    said = next(sample for sample in split.samples if sample.turns > 1).conversation[1]["content"]
    assert said[:8] in page
    assert strict_json((results[0].run_dir / "results.json").read_text())["sampling"]["max_turns"] == 4


def test_a_schedule_sets_what_is_added_to_the_weights(start, one_engine, monkeypatch) -> None:
    scales = []

    def run(jobs):
        jobs = list(jobs)
        scales.append({job.weights[0].scale for job in jobs})
        return EnginePool.run(one_engine, jobs)

    monkeypatch.setattr(one_engine, "run", run)
    start(one_engine, num_iterations=3, sigma_schedule="linear", sigma_end=0.01, antithetic=True).fit()
    assert [sorted(each) for each in scales] == [pytest.approx([-x, x]) for x in (0.02, 0.015, 0.01)]


def test_a_reward_that_sometimes_raises_or_hangs_is_counted(start, one_engine, capsys) -> None:
    def reward(output: str, target: int) -> float:

        if target == 0:
            raise ValueError("no such puzzle")
        while target == 1:
            time.sleep(3600)
        return sum(ord(c) % 32 for c in output) / (1 + len(output))

    class Watching(Trainer):
        graders = 0

        def _postprocess_outputs(self, outputs, targets):
            Watching.graders = max(Watching.graders, len(graders()))
            return super()._postprocess_outputs(outputs, targets)

    def graders() -> list[psutil.Process]:
        return [
            child for child in descendants(os.getpid()) if "esplug.rewards.grader" in command_of(child) and lives(child)
        ]

    trainer = start(one_engine, Watching, reward_function=reward, reward_function_timeout=1.0, num_iterations=2)
    result = trainer.fit()
    rows = read_metrics(result.run_dir)
    assert len(rows) == 2
    for row in rows:
        assert row["train/labels/error:ValueError"] == row["train/labels/timeout"] == 1 / 8
        assert row["train/rewards_failed"] == 4 * 2
        assert row["train/reward/mean"] > 0
    members = read_iteration(result.run_dir, 0)["members"]
    assert all(member["rewards"][:2] == [0, 0] and min(member["rewards"][2:]) > 0 for member in members)
    out = capsys.readouterr().out
    assert out.count("ValueError: no such puzzle") == 1
    assert out.count("a reward failed [error:ValueError] and counts 0.0") == 1
    assert Watching.graders > 0
    assert graders() == []


def test_a_reward_that_stops_the_run_leaves_it_resumable(start, one_engine, tmp_path, capsys) -> None:
    down = tmp_path / "down"

    async def reward(output: str, target: int) -> float:
        if down.exists():
            raise StopRun("the judge does not reply; start it")
        return sum(ord(c) % 32 for c in output) / (1 + len(output))

    class Outage(Trainer):
        def train_step(self, iteration: int) -> None:
            if iteration == 1:
                down.touch()
            super().train_step(iteration)

    settings = {"reward_function": reward, "reward_concurrency": 8, "num_iterations": 3}
    trainer = start(one_engine, Outage, **settings, experiment_name="stopped")
    with pytest.raises(RunError, match="stopped the run: the judge does not reply; start it"):
        trainer.fit()
    status = json.loads(trainer.run_dir.status.read_text())
    assert status["status"] == "failed"
    assert "start it" in status["reason"]
    assert "to resume: " in capsys.readouterr().out
    down.unlink()
    resumed = start(one_engine, **settings, experiment_name="stopped").fit(resume=trainer.run_dir.path)
    assert resumed.checksum == start(one_engine, **settings).fit().checksum


class KeptProbe(Probe):
    """A probe on kept engines."""

    kept: KeptEngines

    def launch_engines(self) -> EnginePool:
        return self.kept


def test_a_probe_measures_engines_and_leaves_nothing(start, two_engines, tmp_path) -> None:
    data = {"eval_dataloader_dict": {"all": [(QUESTIONS, TARGETS)]}, "population_size": 6}
    probe = start(two_engines, KeptProbe, **data)
    speed = probe.measure(tmp_path)
    assert (speed.engines, speed.members, probe.n_engines) == (2, 1, 2)
    assert speed.prompts == len(QUESTIONS)
    assert 0 < speed.tokens <= 8
    assert min(speed.tokens_per_second, speed.switch, speed.generate, speed.evaluation_answer) > 0
    assert 0 < speed.update + 6 * speed.update_member < 10
    work = work_of(probe.config, len(QUESTIONS), len(QUESTIONS))
    assert times_of(probe.config, work, speed, 2, probe.chunk).iteration > speed.generate
    base = MasterWeights.load(Path(probe.config.model_name), "float32").tensor_checksums()
    assert two_engines._call(two_engines._slots, "tensor_checksums") == [base, base]
    assert list(tmp_path.iterdir()) == []
