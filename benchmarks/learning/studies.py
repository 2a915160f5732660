"""Arms that the learning benchmark compares, and the settings that they share."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "models" / "SmolLM2-135M-Instruct"
SUMS = ROOT / "models" / "tiny-sums"


@dataclass(frozen=True)
class Study:
    """Runs to compare.

    Attributes:
        common: settings of every arm.
        arms: what each arm changes.
        mark: held-out reward; the table shows how many answers each arm takes to reach it.
        shown: numbers of answers at which the table shows the held-out reward.
        task: the esplug task that has the rows and grades answers; none for ``tiny_sums.py``.
        task_options: options of the task.
        write: writes the task's data sets to a folder and returns their settings, if the task's own do not serve.
    """

    common: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    mark: float
    shown: Sequence[int]
    task: str | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[Path], Mapping[str, str]] | None = None

    def datasets(self, folder: Path) -> Mapping[str, str]:
        """Return the settings of the data sets, which may be written to a folder."""
        return self.write(folder) if self.write else {}


#: ``pool`` names a class of ``benchmarks.shared.reference``, which sets the arithmetic; other keys are run settings.
REFERENCE = {"pool": "ReferenceMathsPool", "master_dtype": "model"}
MIRRORED = {"antithetic": True}
#: Steps to sweep, with sigma 0.002.
STEPS = {
    "1.5 sigma": {"alpha": 0.003},
    "3 sigma": {"alpha": 0.006},
    "6 sigma": {"alpha": 0.012},
}


def _grpo(
    *rates: float, groups: Sequence[int] = (8, 16), rank: int | None = None, vllm: bool = False
) -> dict[str, dict[str, Any]]:
    """Return arms that TRL trains (``grpo.py``), with 128 answers a step, at these learning rates."""
    kind = f"GRPO{' with vLLM' * vllm}, {f'LoRA of rank {rank}, ' if rank else ''}"
    others = ({"rank": rank} if rank else {}) | ({"vllm": True} if vllm else {})
    return {
        f"{kind}{group} answers a prompt, rate {rate:.0e}": {
            "grpo": {"learning_rate": rate, "group": group, "prompts": 128 // group, **others}
        }
        for group in groups
        for rate in rates
    }


def arithmetic(folder: Path) -> dict[str, str]:
    """Write 600 sums and differences to train on and 300 others, of which the task's own are the first."""
    from esplug_tasks_math import small

    files = {}
    for split, count in (("train", 600), ("eval", 300)):
        files[f"{split}_dataset"] = str(file := folder / f"{split}.jsonl")
        rows = [
            {"problem": each.text, "answer": small.written(each.answer), "exact_form": "strict"}
            for each in small.generate("arithmetic", split, count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


STUDIES = {
    "countdown": Study(
        common={
            "model_name": str(SMALL),
            "sigma": 0.001,
            "population_size": 16,
            "batch_size": 48,
            "max_tokens": 40,
            "max_model_len": 1024,
            "n_iterations": 24,
            "eval_freq": 2,
            "eval_limit": 500,
        },
        task="countdown",
        task_options={"level": "easy", "shots": 1},
        mark=0.4,
        shown=(0, 3072, 6144, 9216, 12288, 18432, 27648),
        arms={
            "reference": REFERENCE | {"n_iterations": 36},
            "paper": {"n_iterations": 36},
            "alpha x 3": {"alpha": 0.0015},
            "reference, alpha x 3": REFERENCE | {"alpha": 0.0015},
            "mirrored, alpha x 3": MIRRORED | {"alpha": 0.0015},
            "alpha x 6": {"alpha": 0.003},
            "48 members, alpha x 3": {"alpha": 0.0015, "population_size": 48, "batch_size": 16},
            "Gaussian noise, alpha x 3": {"pool": "GaussianPool", "alpha": 0.0015},
            "alpha x 6, cosine": {"alpha": 0.003, "alpha_schedule": "cosine"},
            "fast": {"alpha": 0.002, "alpha_schedule": "cosine"},
            "equal noise in equal shapes, alpha x 3": {"pool": "TiedPool", "alpha": 0.0015},
            "momentum 0.5, alpha x 3": {"alpha": 0.00075, "momentum": 0.5},
            "per prompt, alpha x 10": {"reward_shaping": "z-scores-per-prompt", "alpha": 0.005},
            "alpha x 6, 41,472 answers": {"alpha": 0.003, "n_iterations": 54},
            "alpha x 12": {"alpha": 0.006},
            "twice sigma, alpha x 6": {"sigma": 0.002, "alpha": 0.003},
            "twice sigma, alpha x 12": {"sigma": 0.002, "alpha": 0.006},
            "twice sigma, alpha x 24": {"sigma": 0.002, "alpha": 0.012},
            **_grpo(3e-6, 1e-5, 3e-5, 1e-4),
            **_grpo(1e-4, 3e-4, 1e-3, groups=[8], rank=16),
            **_grpo(3e-5, groups=[8], vllm=True),
        },
    ),
    "arithmetic": Study(
        common={
            "model_name": str(SMALL),
            "sigma": 0.002,
            "population_size": 16,
            "batch_size": 96,
            "max_tokens": 40,
            "max_model_len": 1024,
            "n_iterations": 20,
            "eval_freq": 4,
        },
        task="math",
        task_options={"shots": 2},
        write=arithmetic,
        mark=0.3,
        shown=(0, 6144, 12288, 18432, 24576, 30720),
        arms={
            **STEPS,
            **_grpo(1e-5, 3e-5),
            **_grpo(3e-5, groups=[8], vllm=True),
        },
    ),
    "families": Study(
        common={
            "model_name": str(SMALL),
            "sigma": 0.002,
            "population_size": 16,
            "batch_size": 48,
            "max_tokens": 16,
            "max_model_len": 512,
            "n_iterations": 20,
            "eval_freq": 4,
        },
        task="reasoning-gym",
        task_options={
            "name": "family_relationships",
            "min_family_size": 3,
            "max_family_size": 3,
            "shots": 1,
            "eval_size": 300,
        },
        mark=0.3,
        shown=(0, 3072, 6144, 9216, 12288, 15360),
        arms=STEPS,
    ),
    "sums": Study(
        common={
            "model_name": str(SUMS),
            "sigma": 0.002,
            "population_size": 16,
            "batch_size": 64,
            "max_tokens": 4,
            "stop": ["."],
            "n_iterations": 40,
            "eval_freq": 5,
        },
        mark=0.6,
        shown=(0, 5120, 10240, 20480, 30720, 40960),
        arms={
            "reference": REFERENCE,
            "reference, alpha x 2": REFERENCE | {"alpha": 0.002},
            "paper": {},
            "Gaussian noise": {"pool": "GaussianPool"},
            "alpha x 2": {"alpha": 0.002},
            "alpha x 3": {"alpha": 0.003},
            "alpha x 4": {"alpha": 0.004},
            "alpha x 4, cosine": {"alpha": 0.004, "alpha_schedule": "cosine"},
            "alpha x 6": {"alpha": 0.006},
            "alpha x 6, cosine": {"alpha": 0.006, "alpha_schedule": "cosine"},
            "alpha x 12": {"alpha": 0.012},
            "reference, alpha x 4": REFERENCE | {"alpha": 0.004},
            "equal noise in equal shapes": {"pool": "TiedPool"},
            "equal noise in equal shapes, alpha x 2": {"pool": "TiedPool", "alpha": 0.002},
            "equal noise in equal shapes, alpha x 4, cosine": {
                "pool": "TiedPool",
                "alpha": 0.004,
                "alpha_schedule": "cosine",
            },
            "32 members, alpha x 2": {"alpha": 0.002, "population_size": 32, "batch_size": 32},
            "64 members, alpha x 3": {"alpha": 0.003, "population_size": 64, "batch_size": 16},
            "mirrored": MIRRORED,
            "per prompt": {"reward_shaping": "z-scores-per-prompt"},
            "per prompt, alpha x 10": {"reward_shaping": "z-scores-per-prompt", "alpha": 0.01},
            "ranks": {"reward_shaping": "centered-ranks"},
            "ranks, alpha x 7": {"reward_shaping": "centered-ranks", "alpha": 0.007},
            "sigma linear": {"sigma_schedule": "linear"},
            "sigma cosine": {"sigma_schedule": "cosine"},
            "alpha x 2, linear": {"alpha": 0.002, "alpha_schedule": "linear"},
            "alpha x 2, cosine": {"alpha": 0.002, "alpha_schedule": "cosine"},
            "momentum 0.5": {"alpha": 0.0005, "momentum": 0.5},
            "momentum 0.8": {"alpha": 0.0002, "momentum": 0.8},
            "momentum 0.5, alpha x 2": {"alpha": 0.001, "momentum": 0.5},
            "mirrored, alpha x 2": MIRRORED | {"alpha": 0.002},
            "mirrored, alpha x 3, cosine": MIRRORED | {"alpha": 0.003, "alpha_schedule": "cosine"},
            **_grpo(3e-5, 1e-4, 3e-4, 1e-3),
        },
    ),
}
#: The sweep of steps on another tiny model, from the same script.
_SWEPT = ("alpha x 2", "alpha x 3", "alpha x 6", "alpha x 6, cosine", "alpha x 12")
STUDIES["sums-again"] = replace(STUDIES["sums"], arms={name: STUDIES["sums"].arms[name] for name in _SWEPT})


def check_arms(parser: argparse.ArgumentParser, name: str, arms: Sequence[str]) -> None:
    """Exit with an error if there is no such study, or it lacks one of these arms."""
    if name not in STUDIES:
        parser.error(f"there is no study {name!r}; choose from {', '.join(STUDIES)}")
    if unknown := [arm for arm in arms if arm not in STUDIES[name].arms]:
        parser.error(f"study {name} has no arm {unknown[0]!r}; choose from\n  " + "\n  ".join(STUDIES[name].arms))
