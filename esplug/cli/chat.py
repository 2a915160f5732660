"""``esplug chat``: talk with a trained model, beside its base."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.options import Debug, with_settings
from esplug.config import RunConfig
from esplug.errors import UserError
from esplug.utils.console import get_console, say
from esplug.utils.text import printable

if TYPE_CHECKING:
    from esplug.chat.models import ChatModels
    from esplug.chat.session import Chat
    from esplug.engines.messages import Completion

#: Settings with a flag here.
_SETTINGS = {
    *("system_prompt", "chat_template_options", "dtype", "max_model_len", "trust_remote_code"),
    *("eval_temperature", "eval_top_p", "max_tokens", "stop", "seed"),
    *("use_gpus", "n_gpu_per_vllm_engine", "gpu_memory_utilization"),
}
_INHERITED = ("system_prompt", "chat_template_options", "dtype")  # from the run, unless given
_FIXED = {"n_iterations": 0, "n_vllm_engines": 1, "master_dtype": "model", "master_device": "host"}
_WIDE = 100  # columns from which answers stand side by side
_HELP = "/reset forgets the conversation, /quit or Ctrl-D ends it"


@with_settings("eval", leave_out=frozenset(RunConfig.model_fields.keys() - _SETTINGS))
def chat(
    flags: Mapping[str, Any],
    model_or_run: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Run, seed log, model folder or Hugging Face id.")
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this and exit, as for text on standard input.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model to show beside it.  \\[default: the one that the run started from]"),
    ] = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="Talk with the trained model only.")] = False,
    debug: Debug = False,
) -> None:
    """Talk with a trained model, beside the model that it was trained from."""
    if base is not None and no_base:
        raise UserError("--base and --no-base exclude each other; give one of them")
    only = _single_prompt(prompt)
    from esplug.chat.models import find_models, run_of, scratch_parent
    from esplug.chat.session import open_chat
    from esplug.checkpoints.model_kind import ModelUse
    from esplug.config import make_config
    from esplug.doctor.installation import require_installation
    from esplug.runs.summary import read_settings

    require_installation()
    run = run_of(model_or_run)
    stored = read_settings(run)[0] if run else {}
    config = make_config({name: stored[name] for name in _INHERITED if name in stored}, flags, _FIXED, command="eval")
    with ExitStack() as stack:
        with get_console().status("loading", spinner="line"):
            use = ModelUse.of(config)
            place = scratch_parent(run)
            models = find_models(
                model_or_run, base, command="esplug chat", alone=no_base, scratch=place, stack=stack, use=use
            )
            opened = stack.enter_context(open_chat(config, models))
        if only is not None:
            _print(opened, models, only)
            return
        _converse(opened, models, config)


def _single_prompt(prompt: str | None) -> str | None:
    """Return the only prompt, from the flag or standard input; ``None`` if a person types prompts."""
    if prompt is None and sys.stdin.isatty():
        return None
    text = _utf8(lambda: sys.stdin.read() if prompt is None else prompt)
    if not text.strip():
        raise UserError("the prompt is empty; give --prompt TEXT, or text on standard input")
    return text.removesuffix("\n") if prompt is None else text


def _utf8(read: Callable[[], str]) -> str:
    """Return the text that ``read`` returns. Raise ``UserError`` if it comes from bytes that are not UTF-8."""
    try:
        text = read()
        text.encode()  # Python may have made surrogates of such bytes
    except UnicodeError as error:
        raise UserError("the prompt is not text in UTF-8; convert it, for example with iconv") from error
    return text


def _converse(opened: "Chat", models: "ChatModels", config: RunConfig) -> None:
    """Answer what is typed until the user quits."""
    with suppress(ImportError):  # not part of every Python
        import readline  # noqa: F401 (editing and history of typed lines)
    for name in ("system_prompt", "chat_template_options"):
        if value := getattr(config, name):
            say(f"{name.replace('_', ' ')}: {printable(str(value))}", style="dim")
    if not opened.remembers:
        say("this model has no chat template: it continues each text, and remembers nothing", style="dim")
    say(_HELP, style="dim")
    while True:
        try:
            text = _utf8(lambda: input("> ")).strip()
        except EOFError:
            say("")
            return
        except UserError as error:
            say(str(error), style="bold red")
            continue
        match text:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                opened.reset()
                say("the conversation is forgotten", style="dim")
            case _ if text.startswith("/") and text[1:].isalpha():
                say(f"no such command; {_HELP}", style="dim")
            case _:
                try:
                    _print(opened, models, text)
                except UserError as error:  # the conversation is too long
                    say(f"{error}; /reset forgets the conversation", style="bold red")


def _print(opened: "Chat", models: "ChatModels", text: str) -> None:
    """Print the answers: one alone as it is; two below their names, or side by side on a wide terminal."""
    console = get_console()
    names = {"base": f"base: {models.base_name}", "trained": f"trained: {models.name}"}
    if console.is_terminal and console.width >= _WIDE and len(opened.sides) > 1:
        with console.status("answering", spinner="line"):
            answers = list(opened.ask(text))
        _print_beside(answers, names)
        return
    for side, answer in opened.ask(text):
        if len(opened.sides) > 1:
            say(f"--- {printable(names[side])}", style="bold")
        say(_shown(answer))


def _print_beside(answers: "Sequence[tuple[str, Completion]]", names: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), expand=True)
    for _ in answers:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(printable(names[side]), style="bold") for side, _ in answers))
    table.add_row(*(Text(_shown(answer)) for _, answer in answers))
    get_console().print(table)


def _shown(answer: "Completion") -> str:
    """Return an answer as a terminal may show it."""
    cut = "" if answer.finished else f" [cut off after {answer.tokens} tokens]"
    return printable(answer.text) + cut * get_console().is_terminal
