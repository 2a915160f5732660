"""Preview of a run: its settings, prompts, memory and cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import local_model_folder, may_be_on_hub, model_folder
from esplug.checkpoints.model_kind import ModelUse
from esplug.checkpoints.seed_log import read
from esplug.config import RunConfig
from esplug.conversations.turns import max_turns
from esplug.data.batches import Batch, Batches, load_batch_source, load_eval_splits
from esplug.data.chat_template import with_system_prompt
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.doctor.installation import version_of
from esplug.doctor.machine import nearest_folder
from esplug.doctor.memory_table import memory_table
from esplug.doctor.model import check_fit, described_by
from esplug.doctor.stack import Stack, inspect_stack
from esplug.engines.cluster import cluster_address
from esplug.hookspecs import Prompt
from esplug.planning.cost import Speed, Times, Work, times_of, work_of
from esplug.plugins.task import Task
from esplug.runs.directory import RunDirectory
from esplug.runs.early_stopping import check_metric, described
from esplug.runs.summary import duration
from esplug.utils.console import get_console, say
from esplug.utils.text import brief, printable

_N_PROMPTS = 2  # that are printed
_HEAD, _TAIL = 800, 400  # characters of a long prompt that are printed


def dry_run(config: RunConfig, task: Task, resume: Path | None, *, probe: bool) -> None:
    """Print what `esplug train` would do with these settings, and what it would cost.

    Args:
        resume: directory of a run to resume.
        probe: start the engines and measure them; without a probe, a missing model is not downloaded.

    Raises:
        UserError: the run would raise the same error before training.
        RunError: the engines do not start, or no answer can be graded.
    """
    turns = max_turns(config, task.turn_function)
    if not resume:
        RunDirectory.check(config)
    done = _iterations_done(resume)
    splits = load_eval_splits(task, config.eval_dataset, config.eval_limit, config.eval_splits, "--eval-splits")
    train = None
    if config.n_iterations:
        train = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
    say(config.to_toml())
    name, flag = described_by(config)
    folder = local_model_folder(name, flag)
    if folder or probe or not may_be_on_hub(name):
        folder = model_folder(name, flag, ModelUse.of(config))
    _show_data(config, task, train, splits, folder)
    if folder:
        _show_memory(config, folder)
    check_metric(config, splits, several_turns=task.turn_function is not None)
    evaluation_rows = sum(len(questions) for batches in splits.values() for questions, _ in batches)
    work = work_of(config, train.batch_size if train else 0, evaluation_rows, done, turns)
    if turns > 1:
        say(
            f"several turns: a conversation has up to {turns} answers of up to {config.max_tokens:,} tokens; below, it "
            "counts as one answer. It ends early where the next answer would not fit into --max-model-len"
        )
    if rule := described(config):
        say(f"the run {rule}; the costs are those of all iterations")
    if not probe:
        _show_cost(work, None)
        return
    from esplug.dry_run.probe import Probe

    prober = Probe.from_config(config, task.reward, task.template, train, splits, turn_function=task.turn_function)
    speed = prober.measure(nearest_folder(config.output_directory))
    _show_cost(work, times_of(config, work, speed, prober.n_engines, prober.chunk))
    _show_probe(speed)


def _iterations_done(resume: Path | None) -> int:
    log = RunDirectory(resume.expanduser()).seed_log if resume else None
    return len(read(log).steps) if log and log.exists() else 0


def _show_data(
    config: RunConfig, task: Task, train: Batches | None, splits: dict[str, list[Batch]], folder: Path | None
) -> None:
    """Print row counts, prompt lengths and the first prompts, with the chat template if the model is available."""
    encoder = PromptEncoder.load(folder, config) if folder else None
    questions, targets = next(iter(train)) if train else next(iter(splits.values()))[0]
    if encoder and task.turn_function:
        encoder.check_turns(task.template(questions[0]))
    if train:
        lengths = _lengths(encoder, task, train.prompts, "training row")
        say(f"training: {len(train.prompts):,} rows, {train.batch_size:,} prompts per iteration{lengths}")
    for name, batches in splits.items():
        rows = [question for batch, _ in batches for question in batch]
        lengths = _lengths(encoder, task, rows, f"evaluation split {name!r}, row")
        say(f"evaluation: {name}, {len(rows):,} rows{lengths}")
    if encoder is None:
        say("the model is not on this machine: prompts are shown without its chat template, lengths are unknown")
    for number, (question, target) in enumerate(zip(questions[:_N_PROMPTS], targets[:_N_PROMPTS], strict=True), 1):
        prompt = task.template(question)
        text = encoder.render(prompt) if encoder else _without_template(prompt, config.system_prompt)
        say(f"\n--- prompt {number} of {len(questions):,}, target: {printable(brief(repr(target), 200))}")
        say(printable(text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n[...]\n{text[-_TAIL:]}"))
    say("---")
    if encoder:
        for what, description in encoder.describe().items():
            say(f"{what}: {description}")
        say("")


def _lengths(encoder: PromptEncoder | None, task: Task, questions: Sequence[Any], where: str) -> str:
    if encoder is None:
        return ""
    lengths = [len(ids) for ids in PromptBuilder(encoder, task.template).encode(questions, where)]
    return f", {sum(lengths) / len(lengths):.0f} tokens per prompt on average, {max(lengths):,} at most"


def _without_template(prompt: Prompt, system_prompt: str | None) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{each['role']}: {each['content']}" for each in with_system_prompt(prompt, system_prompt))


def _show_memory(config: RunConfig, folder: Path) -> None:
    on_cpu = config.use_gpus == "none" or (version_of("torch") or "").endswith("+cpu")
    memory, findings = check_fit(config, folder, Stack() if on_cpu else inspect_stack(config.use_gpus))
    where = " if all ran on this machine" if cluster_address(config) else ""
    if memory:
        say(f"{memory.plan.describe()}{where}, {memory.plan.device}")
        get_console().print(memory_table(memory))
    for finding in findings:
        if finding.state != "ok":
            say(f"{finding.state}: {finding}")
    say("")


def _show_cost(work: Work, times: Times | None) -> None:
    from rich.table import Table

    table = Table("cost", "answers", "tokens (at most)", *(["time (about)"] if times else []), box=None)
    total = f"total: {work.iterations:,} iterations, {work.evaluations:,} evaluations"
    rows = [
        ("one iteration", work.answers, times.iteration if times else None),
        ("one evaluation", work.evaluation_answers, times.evaluation if times else None),
        (total, work.all_answers, times.run if times else None),
    ]
    for label, answers, seconds in rows:
        time = [] if seconds is None else [duration(seconds)]
        table.add_row(label, f"{answers:,}", f"{answers * work.max_tokens:,}", *time)
    get_console().print(table)
    if times and work.iterations:
        phases = {"generate": times.generate, "switch": times.switch, "grade": times.grade, "update": times.update}
        say("one iteration: " + ", ".join(f"{name} {duration(took)}" for name, took in phases.items()))


def _show_probe(speed: Speed) -> None:
    members = f"{speed.members} member{'s' * (speed.members > 1)}"
    engines = f"{speed.engines} engine{'s' * (speed.engines > 1)}"
    say(
        f"These times come from a probe: {engines}, each with {members} on {speed.prompts:,} prompts, generated "
        f"{speed.tokens_per_second:,.0f} tokens/s, {speed.tokens:.0f} tokens per answer. The total includes the start "
        f"({duration(speed.start)}), but not saving models. Answers that get longer during training take more time."
    )
