"""The command line. It parses before it imports: help and plugin listing load no heavy library."""

import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.check import check
from esplug.cli.config import app as config_app
from esplug.cli.data import app as data_app
from esplug.cli.doctor import doctor
from esplug.cli.export import export
from esplug.cli.init import init
from esplug.cli.options import ConfigFile, Debug, with_settings
from esplug.cli.report import report
from esplug.cli.runs import runs
from esplug.config import Command, RunConfig, flag_of, panel_of
from esplug.doctor.installation import require_installation
from esplug.errors import RunError, UserError
from esplug.utils.text import brief, suggest

if TYPE_CHECKING:
    from esplug.plugins.task import Task
    from esplug.trainer import EvolutionStrategiesTrainer

app = typer.Typer(
    name="esplug",
    help="Fine-tune large language models with Evolution Strategies: any reward, no backpropagation.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: Base of what a malformed command line raises; which package defines it depends on typer's version.
_UsageError: Any = typer.BadParameter.__base__
#: Settings of training, without effect on an evaluation. A file may hold them nevertheless.
_NOT_FOR_EVAL = frozenset(
    name for name in RunConfig.model_fields if panel_of(name) == "Evolution Strategies" or name.startswith("train_")
) | {
    "batch_size",
    "members_per_batch",
    "eval_freq",
    "save_best_models",
    "checkpoint_every",
    "keep_checkpoints",
    "profile",
}
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


@app.command()
@with_settings("train")
def train(
    flags: Mapping[str, Any],
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an interrupted run: its directory. Its settings hold."),
    ] = None,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="With --resume: go on even if what is computed changes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, prompts, memory and cost of the run; do not make it.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="With --dry-run: start no engine to measure how long it would take.")
    ] = False,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Train a model on a task."""
    from esplug.cli.summary import print_summary

    if allow_change and not resume:
        raise UserError("--allow-change is for --resume RUN, which is missing")
    if no_probe and not dry_run:
        raise UserError("--no-probe is for --dry-run, which is missing")
    if not no_probe:
        require_installation()
    settings, task = _resolve(flags, config, "train", resume)
    if dry_run:
        from esplug.dry_run.preview import dry_run as print_dry_run

        print_dry_run(settings, task, resume, probe=not no_probe)
        return
    print_summary(_trainer(settings, task, "train").fit(resume, allow_change=allow_change))


@app.command(name="eval")
@with_settings("eval", leave_out=_NOT_FOR_EVAL)
def evaluate(
    flags: Mapping[str, Any],
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Evaluate two models on the same prompts and report the difference."),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Evaluate a model on a task, or compare two, without training."""
    from esplug.cli.summary import print_model_comparison, print_summary

    require_installation()
    settings, task = _resolve({**flags, "n_iterations": 0}, config, "eval")
    if compare is None:
        print_summary(_trainer(settings, task, "eval").fit())
        return
    from esplug.checkpoints.base_model import model_folder
    from esplug.checkpoints.starting_model import kind_of
    from esplug.runs.compare import compare_models

    if settings.checkpoint:
        raise UserError("--checkpoint names one model and --compare two; give one of the two flags")
    for model in compare:  # both, before the first is evaluated
        if kind_of(model) == "model":
            model_folder(model, "--compare")
    print_model_comparison(compare_models(settings, compare, lambda each: _trainer(each, task, "eval").fit()))


@app.command()
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List installed tasks, data sets, reward shapings and loggers, without importing them."""
    from esplug.cli.plugins import print_plugins

    print_plugins(as_json)


@app.callback(invoke_without_command=True)
def _no_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        import esplug

        typer.echo(f"esplug {esplug.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


app.command()(export)
app.command()(init)
app.command()(check)
app.command()(doctor)
app.command()(report)
app.command()(runs)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def _resolve(
    flags: Mapping[str, Any], config_file: str | None, command: Command, resume: Path | None = None
) -> tuple[RunConfig, "Task"]:
    """Resolve the configuration, of a run to be resumed if there is one, and load the task."""
    from esplug.runs.settings import resolve

    resolved = resolve(flags, config_file, command, resume)
    return resolved.config, resolved.task


def _trainer(config: RunConfig, task: "Task", command: Command) -> "EvolutionStrategiesTrainer":
    from esplug.data.batches import load_batch_source, load_eval_splits
    from esplug.utils.console import get_console

    train_rows = None
    if config.n_iterations:
        train_rows = load_batch_source(task, config.train_dataset, config.batch_size, config.seed)
    flag = flag_of("eval_splits", command)
    splits = load_eval_splits(task, config.eval_dataset, config.eval_limit, config.eval_splits, flag)
    if "console" in config.logging:
        get_console().print(config.to_toml(), markup=False, soft_wrap=True)

    from esplug.trainer import EvolutionStrategiesTrainer

    return EvolutionStrategiesTrainer.from_config(config, task.reward, task.template, train_rows, splits)


def main() -> None:
    """Run the command line.

    Exit status: 0 done, 1 the run failed, 2 the user can mend it, 130 interrupted, 143 terminated.
    """
    debug = "--debug" in sys.argv
    for number in _STOPPING:
        signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        code = _complain(brief(_described(error), 2000), 2)
    except (UserError, RunError, OSError) as error:
        if debug:
            traceback.print_exc()
        code = _complain(brief(str(error), 2000), 2) if isinstance(error, UserError) else _complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    for number in _STOPPING:  # nothing is left to be unwound
        signal.signal(number, _stop_at_once)
    sys.exit(128 + _received[0] if _received else code or 0)


def _described(error: Any) -> str:
    """Say what is wrong with a command line, and for a flag that there is not, which is nearest."""
    nearest = suggest(error.option_name, error.possibilities) if getattr(error, "possibilities", None) else ""
    # Typer passes on how pydantic begins, which reads the options that are one of several words.
    return f"{error.message}; {nearest}" if nearest else str(error.format_message()).replace(": Value error, ", ": ")


def _interrupt(number: int, _: object) -> None:
    """Unwind, which closes engines and files; a second signal does not wait for that."""
    for each in _STOPPING:
        signal.signal(each, _stop_at_once)
    _received.append(number)
    raise KeyboardInterrupt


def _stop_at_once(number: int, _: object) -> None:
    """End this process. The kernel and Ray then end those that it has started."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which progress bars hide
    os._exit(128 + number)


def _complain(message: str, code: int) -> int:
    typer.echo(f"error: {message}", err=True)
    return code
