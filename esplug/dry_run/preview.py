"""``esplug train --dry-run``: what a run would be, without making one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import kept_folder, may_be_on_hub, model_folder
from esplug.checkpoints.seed_log import read
from esplug.config import RunConfig
from esplug.data.batches import Batch, Batches, load_batch_source, load_eval_splits
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.doctor.installation import version_of
from esplug.doctor.machine import nearest_folder
from esplug.doctor.memory_table import memory_table
from esplug.doctor.model import described_by, fit
from esplug.doctor.stack import Stack, look
from esplug.hookspecs import Prompt
from esplug.planning.cost import Speed, Times, Work, times_of, work_of
from esplug.plugins.task import Task
from esplug.runs.directory import RunDirectory
from esplug.runs.summary import duration
from esplug.utils.console import get_console
from esplug.utils.text import brief, printable

_SHOWN = 2  # prompts
_HEAD, _TAIL = 800, 400  # characters of each


@dataclass(frozen=True, slots=True)
class Data:
    """A task's rows: batches of training, if there is any, and evaluation splits."""

    train: Batches | None
    splits: dict[str, list[Batch]]

    @property
    def evaluation_rows(self) -> int:
        """Rows of all splits."""
        return sum(len(questions) for batches in self.splits.values() for questions, _ in batches)


def dry_run(config: RunConfig, task: Task, resume: Path | None, *, probe: bool) -> None:
    """Print what `esplug train` would do with these settings, and what it would cost.

    Args:
        config: of the run.
        task: loaded.
        resume: directory of a run to go on with.
        probe: start the engines and measure them; without it, a model that is not on this machine is not fetched.

    Raises:
        UserError: what a run would raise before it trains.
        RunError: the engines do not start, or no answer can be graded.
    """
    if not resume:
        RunDirectory.check(config)
    log = RunDirectory(resume.expanduser()).seed_log if resume else None
    done = len(read(log).steps) if log and log.exists() else 0
    splits = load_eval_splits(task, config.eval_dataset, config.eval_limit, config.eval_splits, "--eval-splits")
    train = None
    if config.n_iterations:
        train = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
    data = Data(train, splits)
    _say(config.to_toml())
    name, flag = described_by(config)
    folder = kept_folder(name, flag)
    if folder or probe or not may_be_on_hub(name):
        folder = model_folder(name, flag)
    _show_data(config, task, data, folder)
    if folder:
        _show_memory(config, folder)
    work = work_of(config, train.batch_size if train else 0, data.evaluation_rows, done)
    if not probe:
        _show_cost(work, None)
        return
    from esplug.dry_run.probe import Probe

    prober = Probe.from_config(config, task.reward, task.template, train, splits)
    speed = prober.measure(nearest_folder(config.output_directory))
    _show_cost(work, times_of(config, work, speed, prober.n_engines, prober.chunk))
    _show_basis(speed)


def _show_data(config: RunConfig, task: Task, data: Data, folder: Path | None) -> None:
    """Print counts, lengths and the first prompts, as the model sees them where it is there."""
    encoder = PromptEncoder.load(folder, config.max_model_len, config.max_tokens) if folder else None
    questions, targets = next(iter(data.train)) if data.train else next(iter(data.splits.values()))[0]
    if data.train:
        lengths = _lengths(encoder, task, data.train.prompts)
        _say(f"training: {len(data.train.prompts):,} rows, {data.train.batch_size:,} prompts an iteration{lengths}")
    for name, batches in data.splits.items():
        rows = [question for batch, _ in batches for question in batch]
        _say(f"evaluation: {name}, {len(rows):,} rows{_lengths(encoder, task, rows)}")
    if encoder is None:
        _say(
            "the model is not on this machine, so prompts stand here without its chat template, and lengths are unknown"
        )
    for number, (question, target) in enumerate(zip(questions[:_SHOWN], targets[:_SHOWN], strict=True), 1):
        prompt = task.template(question)
        text = encoder.render(prompt) if encoder else _plain(prompt)
        _say(f"\n--- prompt {number} of {len(questions):,}; its target: {printable(brief(repr(target), 200))}")
        _say(printable(text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n[...]\n{text[-_TAIL:]}"))
    _say("---\n")


def _lengths(encoder: PromptEncoder | None, task: Task, questions: Sequence[Any]) -> str:
    if encoder is None:
        return ""
    lengths = [len(ids) for ids in PromptBuilder(encoder, task.template).encode(questions)]
    return f", {sum(lengths) / len(lengths):.0f} tokens a prompt on average, {max(lengths):,} at most"


def _plain(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{each['role']}: {each['content']}" for each in prompt)


def _show_memory(config: RunConfig, folder: Path) -> None:
    on_cpu = config.use_gpus == "none" or (version_of("torch") or "").endswith("+cpu")
    memory, findings = fit(config, folder, Stack() if on_cpu else look(config.use_gpus))
    where = " if all were on this machine" if config.ray_address else ""
    if memory:
        _say(f"{memory.plan.describe()}{where}, {memory.plan.device}")
        get_console().print(memory_table(memory))
    for finding in findings:
        if finding.state != "ok":
            _say(f"{finding.state}: {finding}")
    _say("")


def _show_cost(work: Work, times: Times | None) -> None:
    from rich.table import Table

    columns = ("cost", "answers", "tokens, at most", *(["time, about"] if times else []))
    table = Table(*columns, box=None)
    rows = [
        ("an iteration", work.answers, times.iteration if times else 0.0),
        ("an evaluation", work.evaluation_answers, times.evaluation if times else 0.0),
        (
            f"all: {work.iterations:,} iterations, {work.evaluations:,} evaluations",
            work.all_answers,
            times.run if times else 0.0,
        ),
    ]
    for what, answers, seconds in rows:
        shown = [duration(seconds)] if times else []
        table.add_row(what, f"{answers:,}", f"{answers * work.max_tokens:,}", *shown)
    get_console().print(table)
    if times and work.iterations:
        phases = {"generate": times.generate, "switch": times.switch, "grade": times.grade, "update": times.update}
        _say("an iteration: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items()))


def _show_basis(speed: Speed) -> None:
    members = f"{speed.members} member{'s' * (speed.members > 1)}"
    engines = f"{speed.engines} engine{'s' * (speed.engines > 1)} at once"
    _say(
        f"This rests on a probe: {engines}, each with {members} on {speed.prompts:,} prompts, gave "
        f"{speed.tokens_per_second:,.0f} tokens/s, {speed.tokens:.0f} tokens an answer. Starting took "
        f"{duration(speed.start)}, which is counted; saving models is not. Times grow with the answers, which may get "
        "longer as the model learns."
    )


def _say(text: str) -> None:
    get_console().print(text, markup=False, soft_wrap=True)
