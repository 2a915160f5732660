"""Logger ``wandb``: Weights & Biases. ``WANDB_MODE=offline`` keeps the run on this machine.

A server that does not answer within a few seconds makes the run an offline one too, for ``wandb sync`` to send
later. A resumed run goes on with the same W&B run. What that run already has for a step stays: the
iteration made again has the same rewards, and W&B cannot take a step back. An offline run goes on in a
second folder, of the same id.

What is printed, source code and git's remotes, any of which may hold a password, are not sent.
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
from typing import TYPE_CHECKING, Any

from esplug.errors import PluginError
from esplug.hookspecs import hookimpl
from esplug.loggers.background import PATIENCE, warn
from esplug.loggers.extras import require
from esplug.loggers.resumed import remembered
from esplug.loggers.sample_table import COLUMNS, sample_tables
from esplug.utils.text import cause

if TYPE_CHECKING:
    from esplug.config import RunConfig

_TIMEOUT = 2.0  # seconds that the server has for its first sign of life
_PRIVATE = {"console": "off", "disable_git": True, "save_code": False}
_LOGIN = "run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline"


class WandbLogger:
    """One run of Weights & Biases."""

    def __init__(self) -> None:
        require("wandb")
        self._run: Any = None

    @hookimpl
    def start(self, config: "RunConfig", run_dir: Path) -> None:
        """Open a run named after the experiment, with the whole configuration."""
        import wandb

        # Its reports of its own errors hold the interpreter's end up where the server is gone.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        found = wandb.setup().settings  # in the environment and the user's files
        options = {
            "project": config.wandb_project,
            "name": config.experiment_name or run_dir.name,
            "config": config.model_dump(),
            "dir": str(run_dir),
            # A run that another trainer or the user has open is theirs.
            "reinit": "create_new" if wandb.run else "default",
            "settings": wandb.Settings(finish_timeout=PATIENCE - 2, finish_timeout_raises=True, **_PRIVATE),
        }
        identity = remembered(run_dir / "wandb-run-id", secrets.token_hex(4))
        if found.mode != "online":
            self._run = wandb.init(id=identity, **options)
            return
        problem = _problem(found.base_url)
        if not problem:
            try:
                # Never a prompt: no thread that reads the terminal can be stopped.
                if not wandb.login(verify=False, prompt=False):
                    raise PluginError(f"logger 'wandb' cannot start [no API key]; {_LOGIN}")
                self._run = wandb.init(id=identity, resume="allow", **options)
            except wandb.errors.AuthenticationError as error:
                raise PluginError(f"logger 'wandb' cannot start [{error}]; {_LOGIN}") from error
            except wandb.errors.CommError as error:
                problem, identity = cause(error), secrets.token_hex(4)  # the attempt may still hold the other
        if problem:
            self._run = wandb.init(mode="offline", id=identity, **options)
            warn("wandb", f"does not reach {found.base_url} [{problem}]; to send the run later: {self._sync()}")

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics under their own names."""
        if step >= self._run.step:  # not what W&B would drop, with a warning for each row
            self._run.log(dict(metrics), step=step)

    @hookimpl
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table for each split."""
        import wandb

        if step >= self._run.step:
            tables = {table.name: wandb.Table(list(COLUMNS), table.rows) for table in sample_tables(rows)}
            self._run.log(tables, step=step)

    @hookimpl
    def finish(self, status: str) -> None:
        """Close the run; anything but ``finished`` marks it as failed."""
        import wandb

        try:
            self._run.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError:
            warn("wandb", f"has not sent all of the run in time; to send the rest: {self._sync()}")
            # The interpreter's end would wait for the uploads once more, and longer: the wait is had here.
            closing = Thread(target=wandb.teardown, daemon=True)
            closing.start()
            closing.join(1)

    def _sync(self) -> str:
        return f"wandb sync {self._run.settings.sync_dir}"


def _problem(server: str) -> str:
    """Ask the server for anything at all, through whatever proxy the environment names; say what is wrong, if it is."""
    question = urllib.request.Request(
        f"{server}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(question, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        return "" if error.code in (400, 401, 403) else cause(error)  # it only wants to know who asks
    except (OSError, ValueError, HTTPException) as error:
        # It is there; wandb may know a company's certificates, in places where urllib does not look.
        unknown = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
        return "" if unknown else cause(error)
    return ""
