"""Preparation of a run: the model, graders, Ray and prompts, all checked before an engine starts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import kind_of_folder, longest_prompt
from esplug.checkpoints.model_kind import ModelKind, ModelUse
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.starting_model import starting_model
from esplug.config import RunConfig
from esplug.data.batches import Batch, Batches
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.engines.cluster import Cluster, cluster_address
from esplug.errors import UserError
from esplug.evaluation.evaluator import Evaluator
from esplug.hookspecs import Prompt
from esplug.planning.memory import cpu_items
from esplug.planning.placement import Plan, plan_engines
from esplug.rewards import RewardPool
from esplug.runs.directory import environment
from esplug.runs.engines import shares_prefixes
from esplug.utils.console import say


@dataclass(frozen=True, slots=True)
class StartingModel:
    """The model that a run starts from.

    Attributes:
        folder: its folder.
        kind: its kind.
        engine_bytes: memory that one engine on a CPU takes.
    """

    folder: Path
    kind: ModelKind
    engine_bytes: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        builder: makes prompts from questions.
        evaluator: evaluates the splits.
        batches: training batches from the first iteration on; empty if the run does not train.
        some_prompts: prompts on which to try the reward function.
        some_targets: their targets.
        train_data: row count and fingerprint of training data in memory; else ``None``.
        prefix_caching: whether engines cache the prompts' common prefix.
    """

    builder: PromptBuilder
    evaluator: Evaluator
    batches: Iterator[Batch]
    some_prompts: list[Prompt]
    some_targets: list[Any]
    train_data: dict[str, Any] | None
    prefix_caching: bool

    def surroundings(self, plan: Plan) -> dict[str, Any]:
        """Describe what can change the run's results besides its settings, for ``environment.json``."""
        ends = list(self.builder.encoder.end_tokens)
        return environment() | {"engines": asdict(plan), "train_data": self.train_data, "end_tokens": ends}


def check_inputs(config: RunConfig, reward_function: object, train_dataloader: object) -> Callable[..., Any]:
    """Check what a Python user passes to the trainer, and return the reward function. Raises ``UserError``."""
    if not callable(reward_function):
        found = "is missing" if reward_function is None else f"is not callable ({type(reward_function).__name__})"
        raise UserError(f"reward_function {found}: give a function (model_output, target) -> float")
    if train_dataloader is None and config.n_iterations > 0:
        raise UserError("train_dataloader is missing: give an iterable of (prompts, targets) batches")
    if isinstance(train_dataloader, Iterator):
        raise UserError("train_dataloader can be iterated only once; give a list or a DataLoader instead")
    return reward_function


def find_model(config: RunConfig, resume: Path | None, log: SeedLog | None, stack: ExitStack) -> StartingModel:
    """Find or convert the model to start from, and check that it fits the settings.

    Raises:
        UserError: there is no such model, or it does not fit.
    """
    revision = log.header.base.revision if log else None
    # A converted model goes to the folder of runs, as engines on other machines see it.
    runs = resume.absolute().parent if resume else Path(config.output_directory).expanduser().absolute()
    use = ModelUse.of(config)
    folder = starting_model(config.model_name, config.checkpoint, revision, runs, stack, use)
    kind = kind_of_folder(folder, use)
    for note in kind.notes():
        say(f"note: {note}")
    engine_bytes = sum(item.nbytes for item in cpu_items(folder, config))
    longest_prompt(folder, config.max_model_len, config.max_tokens)
    return StartingModel(folder, kind, engine_bytes)


def start_graders_and_ray(
    config: RunConfig,
    reward_function: Callable[..., Any],
    turn_function: Callable[..., Any] | None,
    model: StartingModel,
    stack: ExitStack,
) -> tuple[RewardPool, Plan, PromptEncoder]:
    """Start graders and Ray, and load the tokenizer meanwhile: each takes seconds. The graders may not be ready yet.

    Raises:
        UserError: no engine fits.
    """
    helper = ThreadPoolExecutor(1)
    loading = helper.submit(PromptEncoder.load, model.folder, config)
    helper.shutdown(wait=False)
    graders = RewardPool(
        reward_function,
        timeout=config.reward_function_timeout,
        memory=config.reward_memory,
        concurrency=config.reward_concurrency,
        turn_function=turn_function,
    )
    stack.callback(graders.close)
    graders.begin()
    cluster = Cluster(cluster_address(config), config.use_gpus)
    stack.callback(cluster.close)
    plan = plan_engines(config, cluster.resources(config.engine_resource), model.engine_bytes)
    if config.reward_workers:
        if not cluster.others():
            raise UserError(f"--reward-workers {config.reward_workers}: Ray has no other node with cores; leave it out")
        stack.enter_context(graders.spread(config.reward_workers, cluster.others))
    return graders, plan, loading.result()


def check_prompts(
    config: RunConfig,
    model: StartingModel,
    plan: Plan,
    builder: PromptBuilder,
    train: Iterable[Batch] | None,
    evaluation: Mapping[str, Iterable[Batch]],
    first: int,
) -> Prompts:
    """Check all prompts that are known before the run; ``first`` is its first iteration.

    Raises:
        UserError: a prompt is invalid or too long.
    """
    end_tokens = builder.encoder.end_tokens
    splits = {name: builder.split(name, loader) for name, loader in evaluation.items()}
    known = [split.prompts for split in splits.values()]
    some_prompts = [prompt for split in splits.values() for prompt in split.templates]
    some_targets = [target for split in splits.values() for target in split.targets]
    train_data = builder.fingerprint(train) if isinstance(train, Batches) else None
    batches: Iterator[Batch] = iter(())
    if train is not None and config.n_iterations:
        batch, batches = builder.batches(train, first)
        known.append(builder.encode(batch[0], "first training batch, prompt"))
        some_prompts, some_targets = builder.prompts(batch[0]), batch[1]
    prefix_caching = shares_prefixes(config, model.folder, plan, known)
    evaluator = Evaluator(config, splits, plan.device, end_tokens)
    return Prompts(builder, evaluator, batches, some_prompts, some_targets, train_data, prefix_caching)
