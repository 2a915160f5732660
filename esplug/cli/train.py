"""``esplug train``: train a model on a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.options import ConfigFile, Debug, with_settings
from esplug.config import Command, RunConfig, flag_of
from esplug.errors import UserError

if TYPE_CHECKING:
    from esplug.plugins.task import Task
    from esplug.trainer import EvolutionStrategiesTrainer


@with_settings("train")
def train(
    flags: Mapping[str, Any],
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Resume an interrupted run, given by its directory, with its settings."),
    ] = None,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="With --resume: continue even if results change.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, prompts, memory and cost of the run without running it.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="With --dry-run: do not start an engine to measure the run's duration.")
    ] = False,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Train a model on a task."""
    from esplug.doctor.installation import require_installation
    from esplug.runs.settings import resolve
    from esplug.runs.tables import print_summary

    if allow_change and not resume:
        raise UserError("--allow-change is for --resume RUN, which is missing")
    if no_probe and not dry_run:
        raise UserError("--no-probe is for --dry-run, which is missing")
    if not no_probe:
        require_installation()
    resolved = resolve(flags, config, "train", resume)
    if dry_run:
        from esplug.dry_run.preview import dry_run as print_dry_run

        print_dry_run(resolved.config, resolved.task, resume, probe=not no_probe)
        return
    trainer = make_trainer(resolved.config, resolved.task, "train")
    print_summary(trainer.fit(resume, allow_change=allow_change, summary=False))


def make_trainer(config: RunConfig, task: "Task", command: Command) -> "EvolutionStrategiesTrainer":
    """Load the data of a run and make its trainer. Error messages name the flags of the command."""
    from esplug.data.batches import load_batch_source, load_eval_splits

    train_rows = None
    if config.n_iterations:
        train_rows = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
    flag = flag_of("eval_splits", command)
    splits = load_eval_splits(task, config.eval_dataset, config.eval_limit, config.eval_splits, flag)
    from esplug.trainer import EvolutionStrategiesTrainer

    functions = task.reward, task.template
    return EvolutionStrategiesTrainer.from_config(
        config, *functions, train_rows, splits, turn_function=task.turn_function
    )
