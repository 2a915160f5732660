"""Jobs of a population: every member answers the same prompts with the same sampling seeds."""

from collections.abc import Iterator, Sequence

from esplug.config import RunConfig
from esplug.engines import Job
from esplug.engines.messages import Sampling, Weights
from esplug.es.members import Member


def population_jobs(
    config: RunConfig,
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    stop_token_ids: tuple[int, ...],
    sigma: float,
    n_engines: int,
) -> Iterator[Job[int]]:
    """Return the jobs of an iteration; a job's keys are positions in ``members``."""
    sampling = Sampling(
        config.max_tokens, config.train_temperature, config.train_top_p, tuple(config.stop), stop_token_ids
    )
    seeds = [(members[0].seed + position) % 2**63 for position in range(len(prompts))]
    size = config.members_at_once(n_engines)
    for first in range(0, len(members), size):
        keys = range(first, min(first + size, len(members)))
        weights = [Weights(members[key].seed, members[key].sign * sigma) for key in keys]
        yield Job(keys, weights, prompts, seeds, sampling, config.mini_batch_size)
