"""What a model's files and the chat settings say reaches real vLLM, and what vLLM refuses is one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from esplug import EvolutionStrategiesTrainer
from esplug.errors import UserError

pytestmark = pytest.mark.vllm

THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    "{% if not enable_thinking %}<think></think>{% endif %}"
)
ENDS = {"config.json": [2, *range(3, 90)], "generation_config.json": [2, *range(90, 150)]}


async def reward(output: str, target: Any) -> float:
    return len(output) / 100


def trainer(model: Path, output: Path, **settings: Any) -> EvolutionStrategiesTrainer:
    """Make a trainer with few prompts and short answers."""
    batch = [[{"role": "user", "content": f"Count to {number}."}] for number in range(8)], [0] * 8
    known: dict[str, Any] = {
        "model_name": str(model),
        "reward_function": reward,
        "train_dataloader": [batch],
        "eval_dataloader_dict": {"held out": [batch]},
        "population_size": 2,
        "num_iterations": 0,
        "max_tokens": 32,
        "n_vllm_engines": 1,
        "use_gpus": "none",
        "logging": "none",
        "output_directory": str(output),
    }
    return EvolutionStrategiesTrainer(**known | settings)


def edited(model: Path, folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Return a copy of a model with changes in one of its JSON files."""
    if model != folder:
        shutil.copytree(model, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_answers_end_at_the_models_own_tokens_after_training_and_from_a_seed_log(tiny_model, tmp_path) -> None:
    model = tmp_path / "model"
    for file, ids in ENDS.items():
        edited(model if model.exists() else tiny_model, model, file, eos_token_id=ids)
    (model / "chat_template.jinja").write_text(THINKING)
    chat = {"chat_template_options": {"enable_thinking": False}, "system_prompt": "Think."}
    run = trainer(model, tmp_path, num_iterations=1, sigma=1e-5, dtype="float32", **chat).fit()
    rows = [row[0] for row in run.evaluations[-1].splits[0].rows]
    assert rows[0].prompt == "<system>Think.<user>Count to 0.<assistant><think></think>"
    assert all(row.finished and row.tokens < 32 for row in rows)
    end_letters = set(map(chr, range(33, 127))) & set("".join(row.output for row in rows))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = set(tokenizer.convert_ids_to_tokens(list(range(3, 150))))
    assert not end_letters & ends, "an end token is in an answer"

    for checkpoint in (run.run_dir, run.model):
        again = trainer(model, tmp_path, checkpoint=str(checkpoint), dtype="float32", **chat).fit()
        assert [row[0].output for row in again.evaluations[-1].splits[0].rows] == [row.output for row in rows]


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}},
            {"dtype": "float32"},
            "torch.float32 is not supported for quantization method awq",
        ),
        ({"max_seq_len": 512}, {"max_model_len": 1000}, "max_model_len (1000) is greater than the derived"),
    ],
)
def test_what_vllm_refuses_is_its_own_reason_in_one_line(changes, settings, reason, tiny_model, tmp_path) -> None:
    model = edited(tiny_model, tmp_path / "model", **changes)
    with pytest.raises(UserError, match=r"^vLLM refuses the model .*/model with these settings: ") as no:
        trainer(model, tmp_path / "runs", **settings).fit()
    assert reason in str(no.value)
    assert "further information" not in str(no.value)
    assert str(no.value).isprintable()
    assert not list((tmp_path / "runs").glob("*")), "a run that could not start left something"
