"""``esplug eval``: evaluate a model, or compare two."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from esplug.cli.options import ConfigFile, Debug, with_settings
from esplug.cli.train import make_trainer
from esplug.config import RunConfig, panel_of
from esplug.config.fields import ES
from esplug.errors import UserError

#: Settings without effect on an evaluation. They have no flags here, but a file may hold them.
_TRAINING_ONLY = frozenset(
    name
    for name in RunConfig.model_fields
    if panel_of(name) == ES.title
    or name.startswith(("train_", "checkpoint_", "early_stopping_"))
    or name in ("batch_size", "members_per_batch", "eval_freq", "save_best_models", "keep_checkpoints", "profile")
)


@with_settings("eval", leave_out=_TRAINING_ONLY)
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
    from esplug.doctor.installation import require_installation
    from esplug.runs.settings import resolve
    from esplug.runs.tables import print_model_comparison, print_summary

    require_installation()
    resolved = resolve({**flags, "n_iterations": 0}, config, "eval", None)
    if compare is None:
        print_summary(make_trainer(resolved.config, resolved.task, "eval").fit(summary=False))
        return
    from esplug.checkpoints.base_model import model_folder
    from esplug.checkpoints.model_kind import ModelUse
    from esplug.checkpoints.starting_model import kind_of
    from esplug.runs.compare import compare_models
    from esplug.utils.local_paths import absolute

    if resolved.config.checkpoint:
        raise UserError("--checkpoint names one model and --compare two; give one of the two flags")
    models = absolute(compare[0]), absolute(compare[1])
    for model in models:  # check both before evaluating the first
        if kind_of(model) == "model":
            model_folder(model, "--compare", ModelUse.of(resolved.config))
    print_model_comparison(
        compare_models(
            resolved.config, models, lambda each: make_trainer(each, resolved.task, "eval").fit(summary=False)
        )
    )
