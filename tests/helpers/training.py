"""Settings of tiny runs, engines that several runs share, and a trainer that uses them."""

from pathlib import Path
from typing import Any

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.pool import EnginePool
from esplug.trainer import EvolutionStrategiesTrainer

QUESTIONS = [f"What is {i} and {i * i}?" for i in range(8)]
TARGETS = list(range(8))


def tiny_run(model: Path, runs: Path, n_engines: int = 1) -> dict[str, Any]:
    """Return a trainer's arguments for one iteration on a CPU, in which the members' rewards differ."""
    return {
        "model_name": str(model),
        "sigma": 0.02,
        "alpha": 0.05,
        "population_size": 4,
        "num_iterations": 1,
        "max_tokens": 8,
        "max_model_len": 256,
        "reward_function": lambda output, target: sum(ord(c) % 32 for c in output) / (1 + len(output)) + target,
        "template_function": lambda question: f"Q: {question} A:",
        "train_dataloader": [(QUESTIONS, TARGETS)],
        "n_vllm_engines": n_engines,
        "use_gpus": "none",
        "logging": ["jsonl"],
        "output_directory": str(runs),
    }


class KeptEngines(EnginePool):
    """Engines that outlive a run. Each run starts with the base weights, as with new engines."""

    def start(self, history: History) -> CaughtUp:
        if not self._slots:
            return super().start(history)
        while any(slot.late for slot in self._slots):  # on a busy machine
            self._wait_for_a_start(list(self._starting))
        self._history = history
        return self._call(self._slots, "catch_up", history.catch_up())[0]

    def close(self) -> None:
        """Keep the engines for the next run."""

    def stop(self) -> None:
        super().close()


class Trainer(EvolutionStrategiesTrainer):
    """A trainer on kept engines."""

    kept: KeptEngines

    def launch_engines(self) -> EnginePool:
        return self.kept
