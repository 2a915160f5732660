"""The model card has the model's settings and evaluations, and nothing private."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.export import export
from esplug.checkpoints.seed_log_records import Step
from esplug.config import make_config
from esplug.data.splits import EvaluationSplit
from esplug.evaluation.figures import Evaluation, Sample, SplitEvaluation
from esplug.planning.placement import Plan
from esplug.runs.directory import RunDirectory
from esplug.runs.result import results
from esplug.weights.master import MasterWeights
from tests.helpers.seed_logs import COEFFICIENTS, make_log

SETTINGS = {
    "task": "countdown",
    "model_name": "org/model@main",
    "train_dataset": "/home/someone/data/train.json",
    "eval_dataset": "/home/someone/a,org/data:config",
    "task_options": {
        "api_key": "hush",
        "path": "~/things/words.txt",
        "address": "https://someone:hu,sh@host/v1",
        "shots": 1,
    },
    "sigma": 0.002,
    "population_size": 4,
    "antithetic": True,
    "stop": ["/answer", "a,b"],
    "output_directory": "/home/someone/experiments",
    "ray_address": "ray://secret-host:10001",
    "experiment_name": "mine",
    "wandb_project": "private",
}
PRIVATE = re.compile(r"/home|someone|hush|secret-host|~/|private|experiments/")


def make_run(path: Path, base: Path) -> Path:
    """Write a run directory as the trainer does, with evaluations after iterations 0, 2 and 4."""
    config = make_config(SETTINGS | {"eval_n_samples": 2, "eval_temperature": 0.5, "pass_k": [1, 2]})
    run = RunDirectory(path)
    path.mkdir()
    (path / "config.toml").write_text(config.to_toml())
    make_log(path / "seeds.log", base, settings=config.model_dump(exclude_none=True))
    for iteration, passing in ((0, 1), (2, 2), (4, 3)):
        samples = [
            Sample(
                "test|split", row, n, "q", "t", "out", float(row < passing), "", row < passing, row < passing, 5, True
            )
            for row in range(4)
            for n in range(2)
        ]
        split = SplitEvaluation("test|split", samples, (1, 2))
        run.write_evaluation(split.split, iteration, split.record(iteration))
        asked = {"test|split": EvaluationSplit(["q"] * 4, [[1]] * 4, ["t"] * 4)}
        run.write_results(results(config, base, 5, Plan(1, "cpu", 0, 1), asked, Evaluation(iteration, [split], 1.0)))
    return path


def front_matter(card: str) -> dict[str, Any]:
    import yaml

    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def card_of(run: Path, out: Path, **options: Any) -> str:
    return (export(run, out, **options).folder / "README.md").read_text(encoding="utf-8")


def test_the_card_has_settings_and_evaluations(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    card = card_of(run, tmp_path / "out")
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["evolution-strategies", "esplug"],
        "license": "apache-2.0",
    }
    assert "base model's own card" not in card
    checksum = MasterWeights.load(base)
    for number, coefficients in enumerate(COEFFICIENTS):
        if any(coefficients):
            checksum.update(Step(number, coefficients, True, 0).seeds(11), coefficients)
    assert f"`{checksum.checksum():016x}`" in card
    for text in ("| sigma | 0.002 |", "| population size | 4 |", "| task | `countdown` |", "| mirrored pairs | yes |"):
        assert text in card
    assert "| training data | `train.json` |" in card
    assert "| evaluation data | `a,org/data:config` |" in card
    assert "| split | figure | prompts | base model | iteration 4 |" in card
    assert re.search(
        r"\| test\\\|split \| pass@1 \| 4 \| 0\.250 \[0\.\d+, 0\.\d+\] \| 0\.750 \[0\.\d+, 0\.\d+\] \|", card
    )
    assert "reward |" not in card, "it says the same as pass@1"
    assert "esplug export seeds.log --out model --iteration 4 --base base\n" in card


@pytest.mark.parametrize(
    "name", ["org/model", "org/model@main", "/home/someone/hub/models--org--model/snapshots/" + "a" * 40]
)
def test_the_card_names_a_base_from_the_hub_as_the_hub_does(base: Path, tmp_path: Path, name: str) -> None:
    make_log(tmp_path / "seeds.log", base, name=name, revision="a" * 40)
    card = card_of(tmp_path / "seeds.log", tmp_path / "out", base=base)
    assert front_matter(card)["base_model"] == "org/model"
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert f"| base model | `org/model`, revision `{'a' * 40}` |" in card
    assert "esplug export seeds.log --out model --iteration 4\n" in card
    assert not PRIVATE.search(card)


def test_a_folder_that_looks_like_an_id_is_not_called_one(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base, name="models/tiny")
    card = card_of(tmp_path / "seeds.log", tmp_path / "out", base=base)
    assert "base_model" not in front_matter(card)
    assert "--base models/tiny\n" in card


def test_the_card_of_an_earlier_iteration_has_its_figures(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    card = card_of(run, tmp_path / "out", iteration=3, dtype="float32")
    assert "| base model | iteration 2 |" in card
    assert "| 0.500 [" in card
    assert "--iteration 3 --dtype float32 --base base\n" in card
    card = card_of(run, tmp_path / "none", iteration=0)
    assert "| split | figure | prompts | base model |" in card


def test_the_card_holds_nothing_private(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    for source, out in ((run, "a"), (run / "seeds.log", "b")):
        card = card_of(source, tmp_path / out)
        assert not PRIVATE.search(card), PRIVATE.search(card)
        assert str(tmp_path) not in card
        assert os.uname().nodename not in card


def test_the_cards_settings_are_a_configuration(base: Path, tmp_path: Path) -> None:
    import tomllib

    card = card_of(make_run(tmp_path / "run", base), tmp_path / "out")
    settings = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
    assert make_config(settings).stop == ["/answer", "a,b"]
    assert settings["task_options"] == {"path": "words.txt", "address": "https://host/v1", "shots": 1}
    assert settings["sigma"] == 0.002


def test_a_log_alone_or_a_damaged_run_directory_gives_a_card(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    assert "## Evaluation" not in card_of(run / "seeds.log", tmp_path / "a")
    (run / "results.json").write_text("{broken")
    (run / "config.toml").write_text("= broken")
    (run / "eval-output" / "model_eval_taskx_iteration4.json").write_text("{broken")
    card = card_of(run, tmp_path / "b")
    assert "| 0.750 [" in card
    make_log(tmp_path / "bare.log", base)
    card = card_of(tmp_path / "bare.log", tmp_path / "c")
    assert "base_model" not in front_matter(card)
    assert str(tmp_path) not in card


def test_only_the_head_of_an_evaluations_file_is_read(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    for file in (run / "eval-output").iterdir():
        text = file.read_text()
        assert text.index('"samples":') < 2**20
        file.write_text(text[: text.index('"samples":') + 20] + "x" * 2**21)
    assert "| 0.750 [" in card_of(run, tmp_path / "out")
