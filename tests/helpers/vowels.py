"""Short runs of a tiny model whose reward is above 0 for random weights."""

from pathlib import Path
from typing import Any


def vowels(output: str, target: Any) -> float:
    """Return the share of vowels."""
    return sum(letter in "aeiou" for letter in output) / max(1, len(output))


def short_run(model: Path, folder: Path, **settings: Any) -> Any:
    """Make a trainer for two iterations."""
    from esplug import EvolutionStrategiesTrainer

    questions = [f"Say {i}" for i in range(20)]
    return EvolutionStrategiesTrainer(
        model_name=str(model),
        reward_function=vowels,
        train_dataloader=[(questions, questions)],
        eval_dataloader_dict={"seen": [(questions, questions)]},
        output_directory=str(folder),
        **{"dtype": "float32", "max_model_len": 128, "max_tokens": 12, "sigma": 0.05, "alpha": 0.1},
        **{"population_size": 4, "num_iterations": 2, "eval_freq": 0, "logging": "none"},
        **settings,
    )
