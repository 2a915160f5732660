"""Checkup: runs every check for the settings of one run."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from esplug.config import RunConfig, make_config, read_toml
from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.doctor.finding import Finding, fixed_by_pip
from esplug.doctor.installation import check_hidden, check_installation
from esplug.doctor.machine import check_disk, check_machine
from esplug.doctor.model import check_fit, check_model
from esplug.doctor.plugin_health import check_plugins
from esplug.doctor.stack import Stack, inspect_stack
from esplug.errors import UserError
from esplug.planning.memory import MemoryPlan
from esplug.plugins import Kind
from esplug.plugins.task import Task
from esplug.runs.settings import resolve
from esplug.utils.text import cause
from esplug.utils.torch_builds import COMPANIONS


@dataclass(frozen=True, slots=True)
class Checkup:
    """The findings of all checks; ``memory`` is ``None`` if the model is not on this machine or does not fit."""

    findings: list[Finding]
    memory: MemoryPlan | None

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(finding.state == "fail" for finding in self.findings)


def checkup(flags: Mapping[str, Any], config_file: str | None) -> Checkup:
    """Run all checks for these settings: flags by field name, and a TOML file.

    Invalid settings are a failed check; the other checks then run without those settings.
    """
    findings: list[Finding] = []
    task: Task | None = None
    memory: MemoryPlan | None = None
    try:
        resolved = resolve(flags, config_file, "train", None)
        config, task = resolved.config, resolved.task
    except UserError as error:
        config = _without_task(flags, config_file)
        findings.append(Finding("settings", "fail", str(error)))
    needed: set[tuple[Kind, str]] = {("task", config.task), ("shaping", config.reward_shaping)}
    needed |= {("logger", name) for name in config.logging}

    def model_and_memory() -> list[Finding]:
        nonlocal memory
        folder, found = check_model(config, stack)
        if folder is None:
            return [*found, check_disk(config, 0, 0)]
        memory, fitting = check_fit(config, folder, stack)
        return found + fitting

    with ThreadPoolExecutor(2) as pool:
        inspecting = pool.submit(inspect_stack, config.use_gpus)
        plugins = pool.submit(check_plugins, needed)
        stack = inspecting.result()
        findings += [*_guarded("installation", check_installation), *check_hidden(), *_imports(stack)]
        findings += _guarded("machine", lambda: check_machine(config, stack))
        findings += _guarded("model", model_and_memory)
        if task is not None:
            findings.append(_data(config, task))
        findings += plugins.result()
    return Checkup(findings, memory)


def _guarded(check: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; an exception becomes a finding, because unusual files and machines can raise anything."""
    try:
        return list(run())
    except Exception as error:
        return [Finding(check, "fail", f"could not be checked [{cause(error)}]")]


def _without_task(flags: Mapping[str, Any], config_file: str | None) -> RunConfig:
    """Return the settings without the task's defaults, or the default settings if those are invalid too."""
    try:
        return make_config(read_toml(config_file) if config_file else {}, flags)
    except UserError:
        return make_config()


def _imports(stack: Stack) -> list[Finding]:
    if not stack.broken:
        return [Finding("imports", "ok", "torch, transformers, vLLM and Ray")]
    return [_import(name, error) for name, error in stack.broken.items()]


def _import(name: str, error: str) -> Finding:
    if name not in COMPANIONS:
        remedy = "reinstall the package that the error names, as the README shows"
        return Finding("imports", "fail", f"{name}: {error}", remedy)
    found = f"{name} does not load with this torch, and transformers or vLLM imports it: {error}"
    note = "install the build that matches torch; or, for models that only read text: "
    return fixed_by_pip("imports", "fail", found, "uninstall", "-y", name, note=note)


def _data(config: RunConfig, task: Task) -> Finding:
    """Load the task's rows and render the first prompt of each split."""
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
    except Exception as error:  # the plugin's code can raise anything
        remedy = f"fix or update {task.info.distribution}"
        return Finding("data", "fail", f"task {task.name!r}: {cause(error)}", remedy)
    return Finding("data", "ok", f"task {task.name}: rows {', '.join(counts)}")
