"""Startup benchmark: time to the first generated token, against plain vLLM, and time of short commands.

    python -m benchmarks.startup

Every figure is measured from the start of a fresh process. Arms alternate, and the best of several runs counts.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shared.machine import processor

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"


def plain(model: str) -> None:
    """Start vLLM as in its documentation, without compiling, and generate a token."""
    from vllm import LLM, SamplingParams

    cpu = {"kv_cache_memory_bytes": 2**30, "enforce_eager": True}
    llm = LLM(model=model, max_model_len=1024, seed=0, **cpu)
    llm.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    _first_token()


def one_process(model: str) -> None:
    """Do the same in one process instead of vLLM's default of two, as esplug's engines do."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    plain(model)


def esplug(model: str) -> None:
    """Train until the first member has answered."""
    from esplug.trainer import EvolutionStrategiesTrainer

    class Trainer(EvolutionStrategiesTrainer):
        def _postprocess_outputs(self, outputs: list[str], targets: object) -> None:  # type: ignore[override]
            _first_token()
            raise SystemExit

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model_name=model,
            max_model_len=1024,
            population_size=2,
            max_tokens=1,
            num_iterations=1,
            reward_function=len,
            train_dataloader=[([PROMPT], [""])],
            n_vllm_engines=1,
            use_gpus="none",
            logging=None,
            output_directory=folder,
        ).fit()


ARMS = {"plain": plain, "one-process": one_process, "esplug": esplug}


def _first_token() -> None:
    Path(os.environ["FIRST_TOKEN"]).write_text(str(time.time()))


def seconds(command: list[str]) -> float:
    """Run a command and return the seconds until its first token, or until its end."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "time")
        started = time.time()
        environment = os.environ | {"FIRST_TOKEN": str(note)}
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=environment)
        return (float(note.read_text()) if note.exists() else time.time()) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help="run one arm in this process (used internally)")
    options = parser.parse_args()
    if options.arm:
        return ARMS[options.arm](options.model)
    own = [sys.executable, "-m", "benchmarks.startup", "--model", options.model, "--arm"]
    command = str(Path(sys.executable).parent / "esplug")
    arms = {
        "esplug, first token": [*own, "esplug"],
        "plain vLLM, first token": [*own, "plain"],
        "plain vLLM in one process, first token": [*own, "one-process"],
        "esplug --help": [command, "--help"],
        "esplug plugins": [command, "plugins"],
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.repeats):
        for name, arm in arms.items():
            found[name].append(seconds(arm))
    print(f"{processor()}, {os.cpu_count()} cores; {platform.platform()}, python {platform.python_version()}\n")
    print("| | best | all |\n|---|---|---|")
    for name in arms:
        print(f"| {name} | {min(found[name]):.2f} s | {', '.join(f'{each:.2f}' for each in found[name])} |")
    best = {name: min(times) for name, times in found.items()}
    for name in arms:
        if name.startswith("plain"):
            print(f"\nesplug takes {best['esplug, first token'] / best[name]:.2f} times as long as {name}")


if __name__ == "__main__":
    main()
