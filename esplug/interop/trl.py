"""A task's rows and rewards for TRL's ``GRPOTrainer``: :class:`TRLTask`."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from esplug.config import RunConfig
from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.errors import UserError
from esplug.hookspecs import Message
from esplug.rewards import Graded, RewardPool
from esplug.rewards.anomalies import AnomalyReporter
from esplug.runs.settings import resolve
from esplug.utils.text import cut_at, suggest

if TYPE_CHECKING:
    from datasets import Dataset

#: Settings that have an effect; TRL's own arguments replace the others.
SETTINGS = (
    *("train_dataset", "eval_dataset", "eval_limit", "eval_splits", "seed", "stop"),
    *("reward_function_timeout", "reward_memory", "reward_concurrency"),
)


class TRLTask:
    """An esplug task, as data sets and a reward function for TRL's ``GRPOTrainer``.

    Rows, prompts, targets and rewards are those that ``esplug train`` uses for the same task, options and seed. As in
    esplug, answers are graded in other processes, with limits of time and memory. :meth:`close`, or leaving a ``with``
    block, ends them. ``docs/trl.md`` has an example.

    Args:
        task: name of an installed task.
        options: its options.
        settings: fields of :class:`esplug.config.RunConfig` that concern data and rewards: those in ``SETTINGS``.

    Attributes:
        config: the settings, with the task's defaults.

    Raises:
        UserError: the task, an option or a setting is invalid, or the task has several turns.
    """

    def __init__(self, task: str, options: Mapping[str, Any] | None = None, **settings: Any) -> None:
        for name in settings:
            if name not in SETTINGS:
                hint = suggest(name, SETTINGS) or "choose from"
                raise UserError(f"TRLTask has no setting {name!r}; {hint} ({', '.join(SETTINGS)})")
        named = {"task": task, "task_options": dict(options or {})}
        resolved = resolve({**settings, **named}, None, "train", None)
        self.config: RunConfig = resolved.config
        self._task = resolved.task
        if self._task.turn_function is not None:
            raise UserError(
                f"task {task!r} has several turns, which TRL's reward functions cannot grade; choose another"
            )
        self._targets: list[Any] = []
        self._anomalies = AnomalyReporter()
        self._pool: RewardPool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that grade answers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def train_dataset(self) -> "Dataset":
        """Return the training rows, with the columns ``prompt`` (text or messages) and ``esplug_row``, an integer.

        Raises:
            UserError: the rows cannot be read, or lack a column.
        """
        rows = load_batch_source(self._task, self.config.train_dataset, self.config.batch_size, self.config.seed)
        return self._dataset(rows.prompts, rows.targets)

    def eval_datasets(self) -> "dict[str, Dataset]":
        """Return the held-out rows by the name of their split, with the columns of :meth:`train_dataset`.

        Raises:
            UserError: the rows cannot be read, or lack a column.
        """
        config = self.config
        splits = load_eval_splits(self._task, config.eval_dataset, config.eval_limit, config.eval_splits)
        return {name: self._dataset(*batch) for name, (batch,) in splits.items()}

    def _dataset(self, questions: Sequence[Any], targets: Sequence[Any]) -> "Dataset":
        from datasets import Dataset

        first = len(self._targets)
        self._targets += targets
        prompts = [self._task.template(question) for question in questions]
        return Dataset.from_dict({"prompt": prompts, "esplug_row": list(range(first, first + len(targets)))})

    def reward(
        self,
        completions: Sequence[str | Sequence[Message]],
        esplug_row: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Return the reward of each completion, for ``reward_funcs``. One that cannot be graded earns 0.0.

        A completion is graded up to the end of its first stop text, because ``esplug train`` would have stopped there.

        Args:
            completions: text, or chat messages of which one is the answer.
            esplug_row: of each completion.
            log_metric: TRL's function that logs a metric. It gets the share of correct answers, if the task says which
                are, the share of those that could not be graded, and the means of the task's own metrics.

        Raises:
            RunError: no completion can be graded, or the reward function raised ``StopRun``.
        """
        targets = [self._targets[row] for row in esplug_row]
        grades = self._started().submit([self._answer(each) for each in completions], targets).result()
        self._anomalies.check_grades(grades)
        if log_metric:
            for name, value in _metrics(grades).items():
                log_metric(name, value)
        return [grade.reward.value for grade in grades]

    def _started(self) -> RewardPool:
        if self._pool is None:
            config = self.config
            limits: dict[str, Any] = {"timeout": config.reward_function_timeout, "memory": config.reward_memory}
            self._pool = RewardPool(self._task.reward, **limits, concurrency=config.reward_concurrency)
            self._pool.start()
        return self._pool

    def _answer(self, completion: str | Sequence[Message]) -> str:
        if not isinstance(completion, str):
            if len(completion) != 1:
                raise UserError(
                    f"a completion has {len(completion)} messages; tasks of esplug grade one: leave out TRL's tools"
                )
            completion = str(completion[0]["content"])
        return cut_at(completion, self.config.stop)


def _metrics(grades: Sequence[Graded]) -> dict[str, float]:
    """Return means over the answers that have a metric, and the share of answers that could not be graded."""
    values: dict[str, list[float]] = {}
    for grade in grades:
        reward = grade.reward
        correct = {} if reward.correct is None else {"correct": float(reward.correct)}
        for name, value in {"rewards_failed": float(grade.failed), **correct, **reward.metrics}.items():
            values.setdefault(name, []).append(value)
    return {name: fmean(each) for name, each in values.items()}
