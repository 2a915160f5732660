"""Entry point of the command line: its commands, signals, and errors in one line."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

from esplug.cli.chat import chat
from esplug.cli.check import check
from esplug.cli.config import app as config_app
from esplug.cli.data import app as data_app
from esplug.cli.doctor import doctor
from esplug.cli.evaluate import evaluate
from esplug.cli.export import export
from esplug.cli.init import init
from esplug.cli.plugins import plugins
from esplug.cli.push import push
from esplug.cli.report import report
from esplug.cli.runs import runs
from esplug.cli.serve import serve
from esplug.cli.switches import without_values
from esplug.cli.train import train
from esplug.errors import RunError, UserError
from esplug.utils.text import brief, suggest

#: Base class of the errors for a malformed command line; the package that defines it depends on typer's version.
_UsageError: Any = typer.BadParameter.__base__
#: What people call a flag, besides names that resemble it.
_OTHER_NAMES = {
    "--lr": "--alpha",
    "--learning-rate": "--alpha",
    "--epochs": "--n-iterations",
    "--steps": "--n-iterations",
    "--model": "--model-name",
    "--dataset": "--train-dataset",
    "--gpus": "--use-gpus",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []

app = typer.Typer(
    name="esplug",
    help="Fine-tune large language models with Evolution Strategies: any reward, no backpropagation.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command()(train)
app.command(name="eval")(evaluate)
app.command()(chat)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
for command in (plugins, export, push, init, check, doctor, report, runs):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def main() -> None:
    """Run the command line.

    Exit status: 0 done, 1 the run failed, 2 an error that the user can fix, 130 interrupted, 143 terminated.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        command = typer.main.get_command(app)
        code = command(without_values(command, sys.argv[1:]), prog_name="esplug", standalone_mode=False)
    except _UsageError as error:
        code = _print_error(brief(_usage_message(error), 2000), 2)
    except (UserError, RunError, OSError) as error:
        if "--debug" in sys.argv:
            import traceback

            traceback.print_exc()
        is_users = isinstance(error, UserError)
        code = _print_error(brief(str(error), 2000) if is_users else str(error), 2 if is_users else 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    for number in _SIGNALS:  # no more engines or files to close
        signal.signal(number, _exit_at_once)
    sys.exit(128 + _received[0] if _received else code or 0)


def _usage_message(error: Any) -> str:
    """Describe a malformed command line; suggest a flag, or say where to look."""
    # Options with a fixed set of words are read by pydantic, whose prefix typer passes on.
    message = str(error.format_message()).replace(": Value error, ", ": ")
    if type(error) is typer.BadParameter or "id you mean" in message or error.ctx is None:
        return message
    hint = f"see `{error.ctx.command_path} --help`"
    if hasattr(error, "possibilities"):
        wrong = error.option_name
        meant = _OTHER_NAMES.get(wrong)
        known = any(meant in option.opts for option in error.ctx.command.params)
        near = f"did you mean {meant!r}?" if known else suggest(wrong, {*(error.possibilities or [])} - {"--help"})
        message, hint = error.message, near or hint
    return f"{message.rstrip('.')}; {hint}"


def _print_error(message: str, code: int) -> int:
    typer.echo(f"error: {message}", err=True)
    return code


def _interrupt(number: int, _: object) -> None:
    """Unwind the stack, which closes engines and files. A second signal ends the process at once."""
    for each in _SIGNALS:
        signal.signal(each, _exit_at_once)
    _received.append(number)
    raise KeyboardInterrupt


def _exit_at_once(number: int, _: object) -> None:
    """End this process. The kernel and Ray then end its children."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # show the cursor, which progress bars hide
    os._exit(128 + number)
