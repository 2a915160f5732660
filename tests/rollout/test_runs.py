"""Whole runs with the rollout loop, on a CPU."""

import pytest

from tests.helpers.vowels import short_run

pytestmark = pytest.mark.vllm

ONE = {"use_gpus": "none", "n_vllm_engines": 1}


def test_runs_end_with_the_same_weights_whoever_decodes(tiny_model, tmp_path) -> None:
    results = [
        short_run(tiny_model, tmp_path, rollout=way, experiment_name=way, **ONE).fit() for way in ("vllm", "device")
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
        short_run(tiny_models("gemma3_text"), tmp_path, rollout="device", **ONE).fit()
    assert not list(tmp_path.iterdir())
