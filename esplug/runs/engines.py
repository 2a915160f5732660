"""Engines of a run: their settings, the weights that they start with, and a population's jobs for them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from esplug.checkpoints.base_model import revision_of, weights_size
from esplug.checkpoints.folders import newest_first, rename_aside
from esplug.checkpoints.history import CaughtUp, History
from esplug.checkpoints.model_kind import ModelKind
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header
from esplug.config import RunConfig
from esplug.engines import EnginePool, Job
from esplug.engines.messages import EngineSettings, Sampling, Weights
from esplug.errors import RunError, UserError
from esplug.es.members import Member
from esplug.planning.placement import Plan
from esplug.planning.shared_prefix import sharing_saves_time
from esplug.runs.directory import RunDirectory
from esplug.utils.console import say
from esplug.utils.cores import slow_on_this_cpu


def shares_prefixes(config: RunConfig, model: Path, plan: Plan, batches: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Whether engines cache the prompts' common prefix: on a CPU always, on a GPU if that saves time for any batch."""
    if plan.device == "cpu" or config.eval_n_samples > 1:
        return True
    weights = weights_size(model)[1]
    return any(sharing_saves_time(prompts, config.max_tokens, weights) for prompts in batches)


def warn_of_slow_types(config: RunConfig, plan: Plan) -> None:
    """Say so if this CPU would be several times faster with another ``dtype``."""
    if plan.device == "cpu" and slow_on_this_cpu(config.dtype):
        say(f"note: this CPU has no AVX-512; --dtype {config.dtype} is several times slower there than --dtype float32")


def engine_settings(
    config: RunConfig, plan: Plan, model: Path, kind: ModelKind, *, prefix_caching: bool
) -> EngineSettings:
    """Return the settings of each engine; ``model`` is the folder of the model to load, and ``kind`` its kind."""
    return EngineSettings(
        model=str(model),
        dtype=config.dtype,
        master_dtype=config.master_dtype,
        master_device=config.master_device,
        device=plan.device,
        tensor_parallel_size=config.n_gpu_per_vllm_engine,
        max_model_len=config.max_model_len,
        memory_share=config.gpu_memory_utilization,
        low_rank=config.low_rank,
        members_at_once=config.members_at_once(plan.n_engines),
        engines_per_gpu=plan.engines_per_gpu,
        prefix_caching=prefix_caching,
        writes_weights=not kind.quantised,
        text_only=kind.multimodal,
        trust_remote_code=config.trust_remote_code,
        rollout=config.rollout,
    )


def start_engines(
    engines: EnginePool, config: RunConfig, run_dir: RunDirectory, model: Path, log: SeedLog | None
) -> tuple[History, CaughtUp]:
    """Start engines, which replay the updates in the seed log (``None`` for a new run), and check their weights.

    Renames checkpoints that engines found damaged.

    Raises:
        UserError: the model holds NaN or infinity, or is not the one that the run started from.
        RunError: replaying the run's updates gave other weights.
    """
    base, steps = (log.header.base, log.steps) if log else (None, [])
    history = History(
        config.seed,
        base.weights_checksum if base else None,
        tuple(steps),
        lambda: [(iteration, str(folder.absolute())) for iteration, folder in newest_first(run_dir.checkpoints)],
    )
    found = engines.start(history)
    if found.undefined:
        raise UserError(
            f"{model}: {len(found.undefined)} tensors hold NaN or infinity, {found.undefined[0]} first; "
            "fetch or train the model again"
        )
    if found.unread:
        say(
            f"{model}: vLLM's model does not use {len(found.unread)} of the checkpoint's tensors, {found.unread[0]} "
            "first; changing them changes no answer"
        )
    for folder, reason in found.damaged:
        aside = rename_aside(Path(folder), "damaged").name
        say(f"skipped a checkpoint: {folder}: {reason}; renamed to {aside}")
    if base and found.base != base.weights_checksum:
        raise UserError(
            f"{model}: not the model that the run started from ({base.name}): its weights have checksum "
            f"{found.base:016x}, the run's had {base.weights_checksum:016x}; name the right one with --model-name"
        )
    if found.checksum != (history.checksum or found.base):
        raise RunError(
            f"replaying {found.replayed} updates gave weights with checksum {found.checksum:016x} instead of "
            f"{history.checksum:016x}; was the run made with another version of esplug?"
        )
    history.base = found.base
    return history, found


def create_seed_log(config: RunConfig, run_dir: RunDirectory, model: Path, checksum: int) -> SeedLog:
    """Create the seed log of a new run, whose base model's weights have this checksum."""
    base = Base(config.checkpoint or config.model_name, revision_of(model), checksum)
    settings = config.model_dump(exclude_none=True)
    return SeedLog.create(run_dir.seed_log, Header(base, config.master_dtype, config.seed, settings, config.rank))


def population_jobs(
    config: RunConfig,
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    stop_token_ids: tuple[int, ...],
    sigma: float,
    n_engines: int,
) -> Iterator[Job[int]]:
    """Return the jobs of an iteration: all members get the same prompts and sampling seeds. Keys are positions."""
    stop = tuple(config.stop)
    sampling = Sampling(config.max_tokens, config.train_temperature, config.train_top_p, stop, stop_token_ids)
    seeds = [(members[0].seed + position) % 2**63 for position in range(len(prompts))]
    size = config.members_at_once(n_engines)
    for first in range(0, len(members), size):
        keys = range(first, min(first + size, len(members)))
        weights = [Weights(members[key].seed, members[key].sign * sigma) for key in keys]
        yield Job(keys, weights, prompts, seeds, sampling, config.mini_batch_size)
