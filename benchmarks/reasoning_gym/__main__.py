"""Table of reasoning-gym: the score of a model on every generator.

    python -m benchmarks.reasoning_gym

The rows are those that ``--task reasoning-gym`` holds out. Generators whose prompts do not fit are listed at the end.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shared.machine import processor
from esplug.config import make_config
from esplug.data.batches import load_eval_splits
from esplug.data.prompt_encoder import PromptEncoder
from esplug.errors import UserError
from esplug.evaluation.figures import SplitEvaluation
from esplug.plugins.task import Task
from esplug.trainer import EvolutionStrategiesTrainer

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--names", default="all", help="generators, as for the task's option name")
    parser.add_argument("--rows", type=int, default=8, help="rows of each generator")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--shots", type=int, default=1, help="worked examples in each prompt")
    arguments = parser.parse_args()

    options = {"name": arguments.names, "eval_size": arguments.rows, "shots": arguments.shots}
    task = Task.load("reasoning-gym", options)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            task.defaults(),
            {
                "task": task.name,
                "task_options": dict(task.options),
                "model_name": arguments.model,
                "output_directory": folder,
            },
            {"max_tokens": arguments.max_tokens, "max_model_len": arguments.max_model_len, "dtype": "float32"},
            {"n_vllm_engines": 1, "use_gpus": "none", "n_iterations": 0, "logging": "none"},
        )
        splits = load_eval_splits(task, None, None)
        encoder = PromptEncoder.load(Path(arguments.model), config)
        kept = {name: batches for name, batches in splits.items() if _fits(encoder, task, batches[0][0])}
        trainer = EvolutionStrategiesTrainer.from_config(config, task.reward, task.template, None, kept)
        result = trainer.fit(summary=False)
    (evaluation,) = result.evaluations
    print(f"{Path(arguments.model).name}, float32, one engine on {processor()}: {arguments.rows} rows a generator,")
    print(f"worked examples in a prompt: {arguments.shots}; answers of at most {arguments.max_tokens} tokens,")
    print(f"evaluated in {evaluation.seconds:.0f} s.\n")
    print("| generator | score | correct | no answer | tokens |\n|---|---|---|---|---|")
    for split in sorted(evaluation.splits, key=lambda split: (-split.reward.mean, split.split)):
        print(_line(split))
    print(f"\nMean score of {len(kept)} generators: {evaluation.average['reward']}.")
    if left_out := [name for name in splits if name not in kept]:
        print(f"Prompts of more than {encoder.longest} tokens: {', '.join(left_out)}.")


def _fits(encoder: PromptEncoder, task: Task, questions: list[Any]) -> bool:
    try:
        encoder.encode([task.template(question) for question in questions])
    except UserError:
        return False
    return True


def _line(split: SplitEvaluation) -> str:
    reward, figures = split.reward, split.figures
    missing = next((each.mean for name, each in figures.items() if name.endswith("no_answer")), 0.0)
    cells = (f"{reward.mean:.3f} [{reward.low:.3f}, {reward.high:.3f}]", f"{split.pass_at_1.mean:.0%}")
    return f"| {split.split} | {' | '.join(cells)} | {missing:.0%} | {figures['tokens'].mean:.0f} |"


if __name__ == "__main__":
    main()
