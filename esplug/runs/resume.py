"""Resumption of an interrupted run: opens its directory and checks which settings have changed."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from esplug.checkpoints.folders import set_aside
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_format import FILE_NAME as SEED_LOG
from esplug.config import RunConfig, flag_of, make_config, panel_of, read_toml
from esplug.config.fields import EVALUATION
from esplug.data.splits import EvaluationSplit
from esplug.errors import UserError
from esplug.evaluation.figures import Evaluation, SplitEvaluation
from esplug.runs.directory import RunDirectory
from esplug.runs.summary import read_json
from esplug.utils import atomic_write
from esplug.utils.console import say
from esplug.utils.file_lock import locked
from esplug.utils.json_files import write_json

#: Settings that may change, besides those of the panels below, as they do not affect the weights. The seed log
#: identifies the base model by its checksum, so its folder may have moved.
_FREE = {"n_iterations", "model_name", "checkpoint", "eval_dataset"}
_FREE_PANELS = {"Evaluation", "Engines", "Output"}
#: Settings on which the seed log itself depends.
_FIXED = ("seed", "master_dtype", "perturbation", "rank")
_NOTED = re.compile(r"\w+-from-iteration(\d+)\.(?:toml|json)")


def stored_config(run: Path) -> RunConfig:
    """Read the settings of a run. Raises ``UserError`` if it is not a training run or its settings are damaged."""
    path = RunDirectory(run).config
    if not path.is_file():
        raise UserError(f"--resume {run}: no run there (no {path.name}); name the directory of a training run")
    try:
        settings = read_toml(str(path))
        if "n_iterations" not in settings:
            raise UserError(f"{path}: n_iterations is missing")
        config = make_config(settings)
    except UserError as error:
        remedy = f"restore {path.name}; {SEED_LOG}'s first line has the settings that the run began with"
        raise UserError(f"--resume {run}: its settings are damaged ({error}); {remedy}") from error
    if not config.n_iterations:
        raise UserError(f"--resume {run}: an evaluation cannot be resumed; start it again")
    return config


def inherited(run: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a resumed run inherits. The user asked for other ones, by field name.

    Raises:
        UserError: there is no run, or the user asked for a setting that cannot change.
    """
    before = stored_config(run).model_dump(exclude_none=True)
    wanted = {**before, **asked}
    if wanted["recipe"] != before["recipe"]:
        raise UserError("--recipe: a resumed run keeps its settings; give those to change, such as --alpha, instead")
    for field in ("output_directory", "experiment_name"):
        if wanted.get(field) != before.get(field):
            raise UserError(f"{flag_of(field)}: a resumed run stays where it is, in {run}; leave it out")
    before.pop("profile", None)  # it was meant for the earlier process
    return before


def reopen(
    run: Path, config: RunConfig, *, allow_change: bool, stack: ExitStack
) -> tuple[RunDirectory, SeedLog | None, RunConfig]:
    """Lock an interrupted run's directory and open its seed log. Repairs a damaged log but changes no other file.

    Args:
        run: directory of the run.
        config: settings to resume with. Without a number of engines, they get the earlier one.
        allow_change: allow other settings than those with which the run started or was last resumed.
        stack: closes the seed log, which is ``None`` if the run did not reach its first iteration, and the lock.

    Raises:
        UserError: another process uses the run, it is finished, its seed log is missing, or a setting has changed that
            must not.
    """
    if not config.n_iterations:
        raise UserError(f"--resume {run}: {flag_of('n_iterations')} 0 leaves nothing to do; ask for more")
    stored_config(run)
    stack.enter_context(locked(run))
    directory = RunDirectory(run)
    log = stack.enter_context(SeedLog.open(directory.seed_log)) if directory.seed_log.exists() else None
    if log is None and any(directory.iterations.glob("iteration*.json")):
        raise UserError(
            f"--resume {run}: {SEED_LOG} is missing, and the weights cannot be recomputed without it; put it back"
        )
    done = len(log.steps) if log else 0
    if log and log.damage:
        say(f"{directory.seed_log}: {log.damage}; resuming from there. The damaged file was copied to {log.copy}")
    before = _last_config(directory, log).model_dump()
    if log:  # the settings on which the seed log depends
        head = log.header
        before |= {"seed": head.run_seed, "master_dtype": head.master_dtype, "rank": head.low_rank}
        before["perturbation"] = "low-rank" if head.low_rank else "full"
    _check_changes(run, before, config, allow_change)
    if done > config.n_iterations or (done == config.n_iterations and _finished(directory, config)):
        raise UserError(
            f"--resume {run}: {done} iterations are done; ask for more with --n-iterations, such as {2 * done}"
        )
    _check_not_stopped(run, directory, before, config)
    engines = _last_environment(directory)[0].get("engines")
    if config.n_vllm_engines is None and isinstance(engines, Mapping):
        config = config.model_copy(update={"n_vllm_engines": engines.get("n_engines")})
    return directory, log, config


def check_environment(directory: RunDirectory, now: Mapping[str, Any], *, allow_change: bool) -> None:
    """Compare machine, software, engines and data with before. Raises ``UserError`` if the training data changed."""
    before, path = _last_environment(directory)
    was, data = before.get("train_data"), now.get("train_data")
    if was and data and was != data and not allow_change:
        raise UserError(
            f"--resume {directory.path}: the training data has changed (rows and fingerprint were {was}, are {data}); "
            "restore it, or resume anyway with --allow-change"
        )
    changed = [key for key in ("engines", "packages", "processor") if before.get(key) != now.get(key)]
    if changed:
        say(f"{' and '.join(changed)} differ from before ({path}), so results may be rounded differently")


def note_changes(directory: RunDirectory, config: RunConfig, environment: dict[str, Any], log: SeedLog) -> None:
    """Write changed settings and a changed environment for the next resumption. Raises ``OSError`` if it cannot."""
    iteration = len(log.steps)
    for kind in ("config", "environment"):  # notes of iterations that a damaged log has lost
        for number, path in _noted(directory, kind):
            if number > iteration:
                path.unlink()
    set_aside(directory.checkpoints, iteration)
    if environment != _last_environment(directory)[0]:
        write_json(directory.path / f"environment-from-iteration{iteration}.json", environment, indent=2)
    if config != _last_config(directory, log):
        atomic_write.write(directory.path / f"config-from-iteration{iteration}.toml", config.to_toml().encode())
    if config != stored_config(directory.path):
        directory.write_config(config)


def _noted(directory: RunDirectory, kind: str) -> list[tuple[int, Path]]:
    """Return the iterations at which settings or environment changed, and the files that note it, newest first."""
    found = ((_NOTED.fullmatch(path.name), path) for path in directory.path.glob(f"{kind}-from-iteration*"))
    return sorted(((int(name[1]), path) for name, path in found if name), reverse=True)


def _last_environment(directory: RunDirectory) -> tuple[dict[str, Any], Path]:
    """Return the run's last known environment and its file; ``{}`` if the file is damaged."""
    path = next((path for _, path in _noted(directory, "environment")), directory.path / "environment.json")
    return read_json(path), path


def _last_config(directory: RunDirectory, log: SeedLog | None) -> RunConfig:
    """Return the settings that the run last used, even if ``config.toml`` was edited."""
    noted = next((path for _, path in _noted(directory, "config")), None)
    try:
        settings = read_toml(str(noted)) if noted else log.header.settings if log else {}
        known = {name: value for name, value in settings.items() if name in RunConfig.model_fields}
        return make_config(known) if known else stored_config(directory.path)
    except UserError as error:
        raise UserError(f"--resume {directory.path}: its earlier settings are damaged ({error})") from error


def past_evaluations(
    directory: RunDirectory, splits: Mapping[str, EvaluationSplit], config: RunConfig, first: int
) -> list[Evaluation]:
    """Read the evaluations that a run resumed at iteration ``first`` does not repeat, in order.

    Skips damaged ones and those with other prompts or another number of samples per prompt.
    """
    found = []
    for iteration in range(first + (not config.evaluates_at(first))):
        try:
            records = [json.loads(directory.evaluation(name, iteration).read_text("utf-8")) for name in splits]
            evaluated = [SplitEvaluation.of_record(record, tuple(config.pass_k)) for record in records]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        same = ([row[0].prompt for row in each.rows] == splits[each.split].texts for each in evaluated)
        answers = {len(row) for each in evaluated for row in each.rows}
        if all(same) and answers == {config.eval_n_samples}:
            by_task = any(each.by_task for each in evaluated)  # as of the whole evaluation
            found.append(Evaluation(iteration, [replace(each, by_task=by_task) for each in evaluated], 0.0))
    return found


def _check_changes(run: Path, before: Mapping[str, Any], now: RunConfig, allow_change: bool) -> None:
    """Raise a ``UserError`` if a setting that affects the weights has changed."""
    scheduled = {now.sigma_schedule, now.alpha_schedule} != {"constant"}
    free = _FREE - {"n_iterations"} if scheduled else _FREE
    for name, was in before.items():
        wanted = getattr(now, name)
        if was == wanted or name in free or panel_of(name) in _FREE_PANELS:
            continue
        flag = flag_of(name)
        if name in _FIXED:
            raise UserError(f"--resume {run}: {flag} was {was} and cannot change within a run; start another run")
        if not allow_change:
            raise UserError(
                f"--resume {run}: {flag} was {was!r} and would be {wanted!r}, which changes the run's results; "
                "leave it out, or add --allow-change"
            )


def _check_not_stopped(run: Path, directory: RunDirectory, before: Mapping[str, Any], now: RunConfig) -> None:
    """Raise a ``UserError`` if early stopping has ended the run, and would end it again at once."""
    status = read_json(directory.status)
    if status.get("status") != "stopped" or not status.get("by_settings"):
        return
    deciding = [name for name in before if panel_of(name) == EVALUATION.title or name in ("eval_dataset", "eval_freq")]
    if all(before[name] == getattr(now, name) for name in deciding):
        patience = flag_of("early_stopping_patience")
        raise UserError(
            f"--resume {run}: it stopped early, as {status.get('reason')}; to continue it, give a larger {patience}, "
            f"or {patience} 0"
        )


def _finished(directory: RunDirectory, config: RunConfig) -> bool:
    """Whether the run has its final model and, if it evaluates, its last evaluation."""
    if not directory.saved_model(config.n_iterations):
        return False
    results = read_json(directory.path / "results.json")
    return results.get("iteration") == config.n_iterations if results else not directory.evaluations.is_dir()
