"""All checks together, for the settings of one run."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from esplug.config import RunConfig, make_config, read_toml
from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.doctor.finding import Finding
from esplug.doctor.installation import installation
from esplug.doctor.machine import disk, machine
from esplug.doctor.model import fit, model
from esplug.doctor.plugin_health import plugin_health
from esplug.doctor.stack import Stack, look
from esplug.errors import UserError
from esplug.planning.memory import MemoryPlan
from esplug.plugins.registry import Kind
from esplug.plugins.task import Task
from esplug.runs.settings import resolve
from esplug.utils.text import cause


@dataclass(frozen=True, slots=True)
class Checkup:
    """What all checks found; ``memory`` is ``None`` where the model is not there."""

    findings: list[Finding]
    memory: MemoryPlan | None

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(finding.state == "fail" for finding in self.findings)


def checkup(flags: Mapping[str, Any], config_file: str | None) -> Checkup:
    """Check everything. Settings that are not valid are a failed check; the others are made without them.

    Args:
        flags: settings by field name.
        config_file: a TOML file.
    """
    try:
        resolved = resolve(flags, config_file, "train", None)
        config, findings, task = resolved.config, [], resolved.task
    except UserError as error:
        config, findings, task = _valid(flags, config_file), [Finding("settings", "fail", str(error))], None
    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(look, config.use_gpus)
        health = pool.submit(plugin_health, _used(config))
        stack = looking.result()
        findings += [*_tried("installation", installation), *_imports(stack)]
        findings += _tried("machine", lambda: machine(config, stack))
        place = _Place()
        findings += _tried("model", lambda: place.find(config, stack))
        if task is not None:
            findings.append(_data(config, task))
        findings += health.result()
    return Checkup(findings, place.memory)


class _Place:
    """The model and its place on the machine, as far as they could be found."""

    memory: MemoryPlan | None = None

    def find(self, config: RunConfig, stack: Stack) -> list[Finding]:
        folder, findings = model(config, stack)
        if folder is None:
            return [*findings, disk(config, 0, 0)]
        self.memory, fitting = fit(config, folder, stack)
        return findings + fitting


def _tried(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Make a check whose own failure is a finding, as odd files and machines may raise anything."""
    try:
        return list(look())
    except Exception as error:
        return [Finding(check, "fail", f"could not be checked [{cause(error)}]")]


def _valid(flags: Mapping[str, Any], config_file: str | None) -> RunConfig:
    """Return what can be had of settings that do not fit the task, or not each other."""
    try:
        return make_config(read_toml(config_file) if config_file else {}, flags)
    except UserError:
        return make_config()


def _used(config: RunConfig) -> set[tuple[Kind, str]]:
    used: set[tuple[Kind, str]] = {("task", config.task), ("shaping", config.reward_shaping)}
    return used | {("logger", name) for name in config.logging}


def _imports(stack: Stack) -> list[Finding]:
    if not stack.broken:
        return [Finding("imports", "ok", "torch, transformers, vLLM and Ray")]
    remedy = "reinstall what the error names, as the README says"
    return [Finding("imports", "fail", f"{name}: {error}", remedy) for name, error in stack.broken.items()]


def _data(config: RunConfig, task: Task) -> Finding:
    """Load the task's rows and ask the first question of each split."""
    try:
        counts = []
        if config.n_iterations:
            train = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
            task.template(train.prompts[0])
            counts.append(f"{len(train.prompts):,} for training")
        splits = load_eval_splits(task, config.eval_dataset, config.eval_limit, config.eval_splits, "--eval-splits")
        for name, batches in splits.items():
            task.template(batches[0][0][0])
            counts.append(f"{sum(len(questions) for questions, _ in batches):,} in {name}")
    except UserError as error:
        return Finding("data", "fail", str(error))
    except Exception as error:  # of a plugin, which must not end the program
        return Finding(
            "data", "fail", f"task {task.name!r}: {cause(error)}", f"mend or update {task.info.distribution}"
        )
    return Finding("data", "ok", f"task {task.name}: rows {', '.join(counts)}")
