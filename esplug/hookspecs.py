"""Every hook esplug calls: the plugin author's reference.

A plugin is a module, or an object, whose hooks are marked with :data:`hookimpl` and which an entry point
names::

    # esplug_tasks_reverse/__init__.py               # pyproject.toml
    from esplug import hookimpl                      # [project.entry-points."esplug.tasks"]
                                                     # reverse = "esplug_tasks_reverse"
    @hookimpl
    def reward(model_output, target):
        return float(model_output.strip() == target[::-1])

The entry-point name is what users type (``--task reverse``). A hook may leave out any argument it does not
need: esplug passes arguments by name. A hook name that esplug does not know is an error, so a misspelling
never goes unnoticed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

if TYPE_CHECKING:
    import numpy as np

    from esplug.config import RunConfig


#: Version of the hooks below. It grows when a hook changes in a way that plugins can notice, which first retires what
#: goes: ``docs/plugins/hooks.md`` has the policy.
API_VERSION = 1

PROJECT = "esplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | list[Message]


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one answer.

    Attributes:
        value: what ES maximises; finite, at most 1e100, higher is better.
        label: a short word for the kind of outcome (``"correct"``, ``"no_answer"``); counted per iteration.
        correct: whether the answer is right, for pass@1; ``None`` where the task has no such notion.
        metrics: further numbers, averaged over the answers and logged under their names.
    """

    value: float
    label: str = ""
    correct: bool | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HubSource:
    """One split of a data set on the Hugging Face Hub.

    Attributes:
        repo: its id, ``owner/name``.
        split: the split's name there.
        config: the configuration, where the data set has several.
        revision: the commit to take; ``None`` for the newest.
        licence: under which the rows are published, as its owners say.
    """

    repo: str
    split: str
    config: str | None = None
    revision: str | None = None
    licence: str = "see the repository"


class TaskSpec:
    """Hooks of a task: where rows come from, how they are asked, how answers are graded."""

    @hookspec(firstresult=True)
    def collate(self, batch: Sequence[Row], options: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """Turn rows into questions and targets. Required.

        Called in the driver with all rows of a split at once, and with the first of them again where it refuses
        them, to find the one at fault. A ``KeyError`` for a missing column becomes an error that lists
        the columns found.

        Args:
            batch: B rows, each a mapping from column to value.
            options: the task's options, defaults filled in.

        Returns:
            Two lists of length B. A question is what ``template`` takes; a target is what ``reward`` takes
            and must be picklable.
        """

    @hookspec(firstresult=True)
    def template(self, question: Any, options: Mapping[str, Any]) -> Prompt:
        """Turn a question into the prompt. Required.

        Returns:
            Text, which the model continues as it is; or chat messages (``{"role": ..., "content": ...}``),
            which go through the model's own chat template.
        """

    @hookspec(firstresult=True)
    def reward(
        self, model_output: str, target: Any, options: Mapping[str, Any]
    ) -> float | tuple[str | Mapping[str, Any], float] | Reward:
        """Grade one answer. Required.

        Called in a separate process, which is killed when it exceeds ``--reward-function-timeout``. What it
        prints is discarded. An exception counts as reward 0.0 with the label ``error:<Type>``, a time-out
        as 0.0 with the label ``timeout``.

        Args:
            model_output: the generated text, without the prompt. Hostile: never ``eval`` it.
            target: from ``collate``.
            options: the task's options, defaults filled in.

        Returns:
            A float; or ``(label, float)``; or a :class:`Reward`. Higher is better.
        """

    @hookspec(firstresult=True)
    def load_rows(
        self, split: str, path: str | None, options: Mapping[str, Any]
    ) -> Sequence[Row] | Mapping[str, Sequence[Row]] | None:
        """Produce the rows of a data set. Optional.

        Args:
            split: ``"train"`` or ``"eval"``.
            path: what the user gave as ``--train-dataset`` or ``--eval-dataset``, of several the one that is
                asked for; ``None`` for the task's own data.
            options: the task's options, defaults filled in.

        Returns:
            For ``"train"`` the rows; for ``"eval"`` a mapping from split name to rows (or rows alone). ``None``
            leaves the reading to esplug, which opens saved DatasetDicts and folders of them, json, jsonl, csv,
            parquet and Hub ids; with ``path`` ``None`` that is an error, because the task has no data of its own.
        """

    @hookspec(firstresult=True)
    def defaults(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the task's recommended run configuration. Optional.

        Returns:
            Names of :class:`esplug.config.RunConfig` fields and values. The user's file and flags win.
        """

    @hookspec(firstresult=True)
    def options(self) -> Mapping[str, Any]:
        """Declare the task's options (``--task-option key=value``) with their defaults. Optional.

        Returns:
            Option name to default value. The default's type (str, int, float or bool) is the type the
            user's text is converted to; an option not named here is refused.
        """


class DatasetSpec:
    """The hook of a data set that ``esplug data build`` makes."""

    @hookspec(firstresult=True)
    def build(self, fetch: Callable[[HubSource], Sequence[Row]]) -> Mapping[str, Mapping[str, Sequence[Row]]]:
        """Make the rows. Required.

        The same sources must give the same rows, in the same order, on every machine. esplug writes them down
        together with where they come from.

        Args:
            fetch: gives the rows of a :class:`HubSource`, from the Hub or from the user's local copy, and
                records the commit, a checksum and the licence.

        Returns:
            ``{"train": splits, "eval": splits}``, either of which may be missing; splits are a mapping from
            split name to rows, and all rows of a split have the same columns.
        """


class ShapingSpec:
    """The hook of a reward shaping (fitness shaping)."""

    @hookspec(firstresult=True)
    def shape(self, rewards: "np.ndarray[Any, np.dtype[np.float64]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Turn rewards into utilities. Required.

        Args:
            rewards: float64[N, B]; reward of member n's answer to prompt b.

        Returns:
            float64[N]; the utility of each member, the weight its perturbation gets in the update. All zeros
            (for example when all rewards are equal) makes no update.
        """


class LoggerSpec:
    """Hooks of a logger, which can neither stop a run once it has started nor delay it.

    All calls to a logger come from one thread, which is the logger's own, in order and one at a time. The run does
    not wait for ``log`` and ``samples``; a logger that falls 256 calls behind loses those that find no room.

    - A hook that raises: in ``start`` that is fatal, later it warns once and the next calls are made all the same.
    - A hook that hangs: the run waits 5 seconds for ``start`` and 5 for ``finish``, for all loggers together. It
      then goes on, with a warning: calls wait for a late ``start`` (one that raises so late is a warning too), and
      after ``finish`` none is made any more.

    The thread ends with the process, in the middle of whatever it does; and it cannot read the terminal.

    A logger whose module or object has the attribute ``synchronous = True`` is called in the run's own thread
    instead, so that what it is given is recorded when ``log`` returns. It must be quick and must not hang:
    ``console`` and ``jsonl`` are such, nothing that waits for a network should be.
    """

    @hookspec
    def start(self, config: "RunConfig", run_dir: Path, iteration: int) -> None:
        """Open the log. Called once, before anything is trained and before any other hook.

        Args:
            config: the run's settings.
            run_dir: where everything of the run lies.
            iteration: 0, or where a resumed run goes on. What an earlier process has logged for that step and
                later ones is about to be logged again.
        """

    @hookspec
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics. Required.

        Args:
            step: the iteration, counted from 0; evaluation after k updates has step k.
            metrics: names such as ``train/reward/mean``, ``time/generate``, ``eval/<split>/pass@1/mean``. A copy.
        """

    @hookspec
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record evaluation samples.

        Args:
            step: updates made so far.
            rows: of one split, with ``split``, ``index`` (of the prompt), ``sample`` (which answer to it, from 0),
                ``prompt``, ``target``, ``output``, ``reward``, ``label``, ``correct``, ``passed``, ``tokens``,
                ``finished``, and ``metrics`` where the task measures something.
        """

    @hookspec
    def finish(self, status: str) -> None:
        """Close the log. Called once, if ``start`` returned.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
        """
