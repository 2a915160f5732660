"""Cost of a run: its answers and tokens, counted, and its seconds, estimated from the measurements of a probe."""

import math
from dataclasses import dataclass

from esplug.config import RunConfig
from esplug.es.update import momentum_weights


@dataclass(frozen=True, slots=True)
class Work:
    """The work that a run has left."""

    iterations: int
    evaluations: int
    prompts: int  # in a batch
    answers: int  # per iteration
    evaluation_answers: int  # per evaluation
    max_tokens: int  # per answer; in a task of several turns, of all answers of a conversation

    @property
    def all_answers(self) -> int:
        """Answers of the whole run."""
        return self.iterations * self.answers + self.evaluations * self.evaluation_answers


@dataclass(frozen=True, slots=True)
class Speed:
    """Measurements of a probe on the run's engines. All times are in seconds."""

    engines: int  # working at the same time
    members: int  # per engine
    prompts: int  # per member
    tokens: float  # per answer, on average
    tokens_per_second: float  # of all engines together
    start: float  # until the engines were ready
    switch: float  # to write the weights of one engine's members
    generate: float  # to answer, after that
    grade: float  # to wait for the last rewards
    update: float  # from no members
    update_member: float  # additional, per member
    evaluation_answer: float  # of one engine, per answer; 0 if nothing is evaluated


@dataclass(frozen=True, slots=True)
class Times:
    """Estimated seconds of an iteration's phases, an evaluation, and the whole run including its start."""

    generate: float
    switch: float
    grade: float
    update: float
    evaluation: float
    run: float

    @property
    def iteration(self) -> float:
        """Seconds of all phases together."""
        return self.generate + self.switch + self.grade + self.update


def work_of(config: RunConfig, prompts: int, evaluation_rows: int, done: int = 0, turns: int = 1) -> Work:
    """Count the work that a run has left after ``done`` iterations.

    ``evaluation_rows`` are those of all splits, and ``turns`` the answers of a conversation at most.
    """
    last, every = config.n_iterations, config.eval_freq
    if every:
        evaluations = (last - 1) // every - (done - 1) // every + 1 if last else 1
    else:
        evaluations = 2 if last and not done else 1
    answers = config.population_size * prompts if last else 0
    evaluation_answers = evaluation_rows * config.eval_n_samples
    evaluations = evaluations if evaluation_rows else 0
    return Work(last - done, evaluations, prompts, answers, evaluation_answers, turns * config.max_tokens)


def times_of(config: RunConfig, work: Work, speed: Speed, n_engines: int, chunk: int) -> Times:
    """Estimate times, assuming that those of answering and grading are proportional to the number of prompts.

    ``chunk`` is the number of answers that an evaluation requests from an engine at a time.
    """
    rounds: float = math.ceil(config.population_size / speed.members) / n_engines
    if work.prompts <= config.mini_batch_size:  # engines do not share a member's prompts
        rounds = math.ceil(rounds)
    larger = work.prompts / speed.prompts
    busy = max(1, min(n_engines, math.ceil(work.evaluation_answers / chunk)))
    evaluation = speed.evaluation_answer * work.evaluation_answers / busy
    updates = config.population_size * _momentum_updates(config)
    times = Times(
        generate=rounds * speed.generate * larger,
        switch=rounds * speed.switch,
        grade=speed.grade * larger,
        update=speed.update + updates * speed.update_member,
        evaluation=evaluation,
        run=0.0,
    )
    run = speed.start + work.iterations * times.iteration + work.evaluations * evaluation
    return Times(times.generate, times.switch, times.grade, times.update, evaluation, run)


def _momentum_updates(config: RunConfig) -> float:
    """Return the number of iterations whose noise an update adds, on average over the run: with momentum, several."""
    most, n = len(momentum_weights(config.momentum)), max(1, config.n_iterations)
    growing = min(n, most)
    return (growing * (growing + 1) / 2 + (n - growing) * most) / n
