"""Logger ``wandb``: Weights & Biases. ``WANDB_MODE=offline`` keeps the run on this machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.errors import PluginError
from esplug.hookspecs import hookimpl

if TYPE_CHECKING:
    from esplug.config import RunConfig

_run: Any = None


@hookimpl
def start(config: "RunConfig", run_dir: Path) -> None:
    """Open a run named after the experiment, with the whole configuration."""
    global _run
    try:
        import wandb
    except ImportError as error:
        raise PluginError("logger 'wandb' needs the package wandb: pip install 'esplug[wandb]'") from error
    try:
        _run = wandb.init(
            project=config.wandb_project,
            name=config.experiment_name or run_dir.name,
            config=config.model_dump(),
            dir=str(run_dir),
        )
    except wandb.errors.UsageError as error:  # raised where no terminal is there to ask for a key
        raise PluginError(
            f"logger 'wandb' cannot start [{error}]; run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline"
        ) from error


@hookimpl
def log(step: int, metrics: Mapping[str, float]) -> None:
    """Record the metrics under their own names."""
    _run.log(dict(metrics), step=step)


@hookimpl
def samples(step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Record the samples as a table named ``samples``."""
    import wandb

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    _run.log({"samples": wandb.Table(columns=columns, data=cells)}, step=step)


@hookimpl
def finish(status: str) -> None:
    """Close the run; anything but ``finished`` marks it as failed."""
    _run.finish(exit_code=0 if status == "finished" else 1)


def _cell(value: Any) -> Any:
    """A table's column holds one type, so messages and targets become text."""
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)
