"""Whole runs with the rollout loop, on a CPU."""

from typing import Any

import pytest

pytestmark = pytest.mark.vllm


def _trainer(model: Any, folder: Any, **settings: Any) -> Any:
    from esplug import EvolutionStrategiesTrainer

    questions = [f"Say {i}" for i in range(20)]
    return EvolutionStrategiesTrainer(
        model_name=str(model),
        reward_function=_vowels,
        train_dataloader=[(questions, questions)],
        eval_dataloader_dict={"seen": [(questions, questions)]},
        output_directory=str(folder),
        **{"use_gpus": "none", "dtype": "float32", "max_model_len": 128, "max_tokens": 12, "n_vllm_engines": 1},
        **{"sigma": 0.05, "alpha": 0.1, "population_size": 4, "num_iterations": 2, "eval_freq": 0, "logging": "none"},
        **settings,
    )


def _vowels(output: str, target: Any) -> float:
    return sum(letter in "aeiou" for letter in output) / max(1, len(output))


def test_runs_end_with_the_same_weights_whoever_decodes(tiny_model, tmp_path) -> None:
    results = [
        _trainer(tiny_model, tmp_path, rollout=way, experiment_name=way, train_temperature=0.0).fit()
        for way in ("vllm", "device")
    ]
    vllm, device = results
    assert device.checksum == vllm.checksum
    texts = [[row.output for row in each.evaluations[-1].splits[0].samples] for each in results]
    assert texts[0] == texts[1]
    logs = [(each.run_dir / "logs" / "engine-0.log").read_text() for each in results]
    assert ["rollout: the loop on the device" in log for log in logs] == [False, True]


def test_a_model_that_the_loop_cannot_answer_with_is_one_line(tiny_models, tmp_path) -> None:
    from esplug.errors import UserError

    with pytest.raises(
        UserError,
        match=r"^--rollout device: not for this model: not all of the model's layers attend to all tokens; "
        "choose --rollout auto or vllm$",
    ):
        _trainer(tiny_models("gemma3_text"), tmp_path, rollout="device").fit()
    assert not list(tmp_path.iterdir())
