"""Task checks: options, defaults, rows, prompts and targets. See :mod:`.answers` for the checks of its rewards."""

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import cloudpickle
import pluggy

from esplug.authoring.conformance.answers import Functions, Gold, reward_checks
from esplug.authoring.conformance.checklist import Check, Checklist, Fault, Report, Skipped, loads, resolved
from esplug.config import RunConfig, make_config
from esplug.data.batches import Batch, Split, load_batch_source, load_eval_splits
from esplug.data.splits import fingerprint
from esplug.hookspecs import Message, Prompt
from esplug.plugins import PluginInfo
from esplug.plugins.task import Task
from esplug.utils.text import cause

_PRINT_CONTENTS = "from esplug.authoring.conformance.tasks import print_contents; print_contents()"


def task_checks(
    plugin: object,
    options: Mapping[str, object] | None = None,
    *,
    train_dataset: str | None = None,
    eval_dataset: str | None = None,
    gold: Gold | None = None,
    report: Report | None = None,
) -> list[Check]:
    """Check a task as :func:`esplug.testing.check_task` does, and return failed checks too.

    Without ``gold``, the texts in a target are tried, and their rewards are reported. ``report`` is called before and
    after each check. Grading has the time limit that the task recommends or, by default, that of esplug.
    """
    checks = Checklist(report)
    info, load = resolved("task", plugin)
    if (hooks := checks.run("loads", partial(loads, load))) is None:
        return checks.results
    if checks.run("options", partial(_options, info, hooks)) is None:
        return checks.results
    task = Task.wrap(info, hooks, options)
    config = checks.run("defaults", partial(_defaults, task))
    batches: list[Batch] = []
    paths: dict[Split, str | None] = {"train": train_dataset, "eval": eval_dataset}
    for split, path in paths.items():
        rows = partial(_rows, task, split, path, isinstance(plugin, str))
        batches += checks.run(f"{split} rows", rows, users=path is not None) or []
    if not batches and all(check.ok for check in checks.results):
        checks.run("prompts and rewards", _no_rows)
    if config is None or not batches:
        return checks.results
    questions = [question for batch in batches for question in batch[0]]
    targets = [target for batch in batches for target in batch[1]]
    prompted = checks.run("prompts", partial(_prompts, task, questions))
    if checks.run("targets pickle", partial(_targets, targets)) is None:
        return checks.results
    functions = Functions(task.reward, task.turn_function)
    if functions.turn and not prompted:
        return checks.results
    if not isinstance(plugin, str):
        turn = partial(_turn_uninstalled, plugin, dict(task.options)) if functions.turn else None
        functions = Functions(partial(_reward_uninstalled, plugin, dict(task.options)), turn)
    few = [0, -len(batches[-1][1]), -1]
    tried = [(task.template(questions[i]) if functions.turn else None, targets[i]) for i in few]
    reward_checks(checks, functions, tried, config, gold)
    return checks.results


def _options(info: PluginInfo, hooks: pluggy.HookRelay) -> tuple[Mapping[str, Any], str]:
    """Check that typing the default of each option gives the same value."""
    declared = Task.wrap(info, hooks).options
    again = Task.wrap(info, hooks, {name: _typed(name, value) for name, value in declared.items()}).options
    for name, value in declared.items():
        if again[name] != value:
            raise Fault(f"option {name!r} is {value!r}, but typing that makes it {again[name]!r}")
    shown = (f"{name}: {type(value).__name__} = {value!r}" for name, value in declared.items())
    return declared, ", ".join(shown) or "none"


def _typed(name: str, value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        raise Fault(f"option {name!r} is NaN, which is not equal to itself; choose another default")
    try:
        return str(value)
    except ValueError:  # Python's limit on digits
        raise Fault(f"option {name!r} is an int with too many digits to type; choose a smaller default") from None


def _defaults(task: Task) -> tuple[RunConfig, str]:
    defaults = task.defaults()
    shown = ", ".join(f"{name} = {value!r}" for name, value in defaults.items())
    return make_config(defaults), shown or "none"


def _rows(task: Task, split: Split, path: str | None, installed: bool) -> tuple[list[Batch], str]:
    """Load a split twice and compare: in another process if the task is installed, otherwise in this one."""
    if path is None and task.load_rows(split, None) is None:
        raise Skipped(f"the task has no {split} rows of its own; give --{split}-dataset")
    batches = _load(task, split, path)
    first = _contents(task, batches)
    again = _contents_elsewhere(task, split, path) if installed else _contents(task, _load(task, split, path))
    # The check of the prompts reports a template that returns a different prompt every time.
    where = "in another process" if installed else "again"
    if first != again and first == _contents(task, batches):
        raise Fault(f"they differ when they are loaded {where}, so a run could be neither resumed nor repeated")
    counts = ", ".join(f"{len(batch[0])} in {name}" for name, batch in batches.items())
    return list(batches.values()), f"{counts}; one question and one target each; the same when loaded {where}"


def _no_rows() -> tuple[None, str]:
    raise Skipped("they need rows; give --train-dataset")


def _load(task: Task, split: Split, path: str | None) -> dict[str, Batch]:
    if split == "train":
        rows = load_batch_source(task, path, batch_size=1, seed=0)
        return {"train": (rows.prompts, rows.targets)}
    return {name: batches[0] for name, batches in load_eval_splits(task, path, None).items()}


def _contents(task: Task, batches: Mapping[str, Batch]) -> dict[str, str]:
    """Return a fingerprint of each split's prompts and targets, as a run records it."""
    return {
        name: fingerprint((_shown(task.template(question)) for question in questions), targets)
        for name, (questions, targets) in batches.items()
    }


def _shown(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else repr([(each["role"], each["content"]) for each in prompt])


def _contents_elsewhere(task: Task, split: Split, path: str | None) -> dict[str, str]:
    """Return the fingerprints from another process with another hash seed, in which sets have another order."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    command, request = [sys.executable, "-c", _PRINT_CONTENTS], json.dumps([task.name, dict(task.options), split, path])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        *_, why = ["", *done.stderr.strip().splitlines()]
        raise Fault(f"another process cannot load them: {why or f'it ended with status {done.returncode}'}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def print_contents() -> None:
    """Print fingerprints as JSON in the last line. Reads the task, options, split and path from standard input."""
    name, options, split, path = json.load(sys.stdin)
    task = Task.load(name, options)
    contents = _contents(task, _load(task, split, path))
    print(f"\n{json.dumps(contents)}", flush=True)


def _prompts(task: Task, questions: list[Any]) -> tuple[bool, str]:
    prompts = [task.template(question) for question in questions]
    for number, (prompt, question) in enumerate(zip(prompts, questions, strict=True), start=1):
        if not all(isinstance(text, str) for text in _texts_of(prompt)):
            raise Fault(f"prompt {number} has a message whose content is not text")
        if not "".join(_texts_of(prompt)).strip():
            raise Fault(f"prompt {number} is empty")
        if task.template(question) != prompt:
            raise Fault(f"prompt {number} differs when it is made again from the same question")
    lengths = [sum(map(len, _texts_of(prompt))) for prompt in prompts]
    kinds = " and ".join(sorted({"text" if isinstance(prompt, str) else "chat messages" for prompt in prompts}))
    return True, f"{len(prompts)} of {min(lengths)} to {max(lengths)} characters, as {kinds}; the same when made again"


def _texts_of(prompt: Prompt) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def _targets(targets: list[Any]) -> tuple[bool, str]:
    sizes = []
    for number, target in enumerate(targets, start=1):
        try:
            pickled = cloudpickle.dumps(target)
            pickle.loads(pickled)
        except Exception as error:
            raise Fault(
                f"target {number} ({type(target).__name__}) cannot be pickled [{cause(error)}]; "
                "return plain data from collate"
            ) from error
        sizes.append(len(pickled))
    return True, f"{len(targets)} of {min(sizes)} to {max(sizes)} bytes"


def _reward_uninstalled(
    plugin: object, options: Mapping[str, Any], model_output: str, target: Any, messages: list[Message]
) -> Any:
    """Grade with a plugin that has no entry point. Runs in the grading process."""
    _, load = resolved("task", plugin)
    return load().reward(model_output=model_output, target=target, messages=messages, options=options)


def _turn_uninstalled(plugin: object, options: Mapping[str, Any], messages: list[Message], target: Any) -> Any:
    """Reply with a plugin that has no entry point. Runs in the grading process."""
    _, load = resolved("task", plugin)
    return load().turn(messages=messages, target=target, options=options)
