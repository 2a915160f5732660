"""Logger ``wandb``: Weights & Biases. ``WANDB_MODE=offline`` keeps the run on this machine.

If the server does not answer within a few seconds, the run is offline too, and ``wandb sync`` can send it later. A
resumed run continues the same W&B run and skips the steps that it already has: a repeated iteration has the same
rewards, and W&B cannot replace a step. A resumed offline run continues in a second folder with the same id.

Console output, source code and git remotes are not sent, because they may contain passwords.
"""

import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any

from esplug.config import RunConfig
from esplug.errors import PluginError
from esplug.hookspecs import hookimpl
from esplug.loggers.background import TIMEOUT, warn
from esplug.loggers.services import COLUMNS, require, sample_tables, stored_identity
from esplug.utils.text import cause

_PROBE_TIMEOUT = 2.0  # seconds in which the server must answer a first request
_PRIVATE = {"console": "off", "disable_git": True, "save_code": False}
_WHO = "logger 'wandb'"
_LOGIN = "run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline"


class WandbLogger:
    """One run of Weights & Biases."""

    def __init__(self) -> None:
        require("wandb")
        self._run: Any = None

    @hookimpl
    def start(self, config: RunConfig, run_dir: Path) -> None:
        """Open a run named after the experiment, with all settings, notes and tags."""
        import wandb

        # Otherwise wandb's error reports delay the exit of the interpreter when the server is gone.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        found = wandb.setup().settings  # from the environment and the user's files
        options = {
            "project": config.wandb_project,
            "name": config.experiment_name or run_dir.name,
            "config": config.model_dump(),
            "notes": config.notes,
            "tags": config.tags,
            "dir": str(run_dir),
            # Leave alone a run that another trainer or the user has open.
            "reinit": "create_new" if wandb.run else "default",
            "settings": wandb.Settings(finish_timeout=TIMEOUT - 2, finish_timeout_raises=True, **_PRIVATE),
        }
        identity = stored_identity(run_dir / "wandb-run-id", secrets.token_hex(4))
        if found.mode != "online":
            self._run = wandb.init(id=identity, **options)
            return
        problem = _problem(found.base_url)
        if not problem:
            try:
                # Never prompt: a thread that reads from the terminal cannot be stopped.
                if not wandb.login(verify=False, prompt=False):
                    raise PluginError(f"logger 'wandb' cannot start [no API key]; {_LOGIN}")
                self._run = wandb.init(id=identity, resume="allow", **options)
            except wandb.errors.AuthenticationError as error:
                raise PluginError(f"logger 'wandb' cannot start [{error}]; {_LOGIN}") from error
            except wandb.errors.CommError as error:
                problem, identity = cause(error), secrets.token_hex(4)  # the failed attempt may still use the old id
        if problem:
            self._run = wandb.init(mode="offline", id=identity, **options)
            warn(
                "logger 'wandb'", f"does not reach {found.base_url} [{problem}]; to send the run later: {self._sync()}"
            )

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics under their own names."""
        if step >= self._run.step:  # W&B would drop the row with a warning
            self._run.log(dict(metrics), step=step)

    @hookimpl
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table for each split."""
        import wandb

        if step >= self._run.step:
            tables = {name: wandb.Table(list(COLUMNS), table) for name, table in sample_tables(rows).items()}
            self._run.log(tables, step=step)

    @hookimpl
    def finish(self, status: str) -> None:
        """Close the run. Any status but ``finished`` marks it as failed."""
        import wandb

        try:
            self._run.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError:
            warn(_WHO, f"has not sent all of the run in time; to send the rest: {self._sync()}")
            # Otherwise the interpreter waits for the uploads when it exits, and for longer.
            closing = Thread(target=wandb.teardown, daemon=True)
            closing.start()
            closing.join(1)

    def _sync(self) -> str:
        return f"wandb sync {self._run.settings.sync_dir}"


def _problem(server: str) -> str:
    """Send the server a small request, through the environment's proxy; return the problem, or ``""`` if it answers."""
    request = urllib.request.Request(
        f"{server}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        return "" if error.code in (400, 401, 403) else cause(error)  # it answers, and asks for a login
    except (OSError, ValueError, HTTPException) as error:
        # The server answers. wandb may find certificates of a company that urllib does not know.
        untrusted = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
        return "" if untrusted else cause(error)
    return ""
