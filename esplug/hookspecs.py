"""Hook specifications: the reference of every hook that a plugin can implement.

A plugin is a module, class or object whose hooks are marked with :data:`hookimpl`. An entry point registers it::

    # esplug_tasks_sentiment/__init__.py             # pyproject.toml
    from esplug import hookimpl                      # [project.entry-points."esplug.tasks"]
                                                     # sentiment = "esplug_tasks_sentiment"
    @hookimpl
    def reward(model_output, target):
        return float(model_output.split()[:1] == [target])

Users select a plugin by the name of its entry point (``--task sentiment``). esplug imports a plugin when a run names
it; of a class, it makes one instance. esplug passes arguments by name, so a hook lists only those that it needs. An
unknown hook or argument is an error, so a misspelled name never goes unnoticed.

An exception in a hook stops the command with an error that names the plugin, unless the hook's description says
otherwise. Raise ``ValueError`` for a mistake of the user, such as a bad option value: esplug prints its message in one
line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

if TYPE_CHECKING:
    import numpy as np

    from esplug.config import RunConfig
    from esplug.events import EvaluationEnd, IterationEnd, RunEnd


#: Version of the hooks below. It increases when a change can break plugins, after a deprecation period:
#: see ``docs/plugins/hooks.md``.
API_VERSION = 1

PROJECT = "esplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | list[Message]


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one answer."""

    value: float  #: number that ES maximises; finite, and at most 1e100 in magnitude
    label: str = ""  #: kind of outcome, such as ``"correct"`` or ``"no_answer"``; esplug logs the share of each label
    correct: bool | None = None  #: whether the answer is right, for pass@k; ``None`` if the task cannot tell
    #: additional numbers by name; esplug logs their mean over the answers
    metrics: Mapping[str, float] = field(default_factory=dict)


class StopRun(Exception):  # noqa: N818 - it asks for a stop; the answer is not at fault
    """Stops the run when a ``reward`` raises it, because no answer can be graded, whatever it says.

    Raise it for a fault outside the answer, such as a server that does not reply. The message says in one line what is
    wrong and how to fix it. The run ends with exit status 1 and can be resumed; a run that has not started ends with
    exit status 2. The text is recorded in the run's directory, so it must not hold secrets.
    """


@dataclass(frozen=True, slots=True)
class Example:
    """An example of one kind of a task's questions."""

    name: str  #: what users type to choose this kind
    question: str  #: as text; long ones are cut for display
    answer: str = ""  #: a right answer; empty if the task cannot tell


@dataclass(frozen=True, slots=True)
class HubSource:
    """One split of a data set on the Hugging Face Hub."""

    repo: str  #: id of the data set, ``owner/name``
    split: str  #: name of the split
    config: str | None = None  #: name of the configuration, if the data set has several
    revision: str | None = None  #: commit to download; ``None`` for the newest
    licence: str = "see the repository"  #: of the rows, used if the data set's card does not state one


class TaskSpec:
    """Hooks of a task: where its rows come from, how to prompt with them, and how to grade answers.

    A run calls ``options`` and ``defaults`` to resolve its settings. It then calls ``load_rows`` and ``collate`` once a
    data set, ``template`` for every question, and ``reward`` for every answer. If the task has the hook ``turn``, every
    question starts a conversation of several turns, and ``reward`` grades the whole conversation.

    The argument ``options`` maps the name of each of the task's options to the user's value or the default.
    """

    @hookspec(firstresult=True)
    def collate(self, batch: Sequence[Row], options: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """Turn rows into questions and targets. Required.

        Called in the driver, once for each split, with all rows that the run uses. If it raises, esplug calls it again
        with fewer rows, to find the row at fault and name it in the error. A ``KeyError`` for a missing column becomes
        an error that lists the columns found.

        Args:
            batch: B rows, each a mapping from column to value.

        Returns:
            Two lists of length B. esplug passes each question to ``template``, and each target to ``reward``. Targets
            must be picklable.
        """

    @hookspec(firstresult=True)
    def template(self, question: Any, options: Mapping[str, Any]) -> Prompt:
        """Turn a question into a prompt. Required.

        Called in the driver: for every question when the data is loaded, and again for each batch. It must return the
        same prompt each time.

        Args:
            question: from ``collate``.

        Returns:
            Text, which the model continues as it is; or a list of chat messages (``{"role": ..., "content": ...}``),
            to which esplug applies the model's chat template. The content should be text.
        """

    @hookspec(firstresult=True)
    def turn(self, messages: list[Message], target: Any, options: Mapping[str, Any]) -> Sequence[Message] | str | None:
        """Reply to the model's last answer, in a task whose environment answers back. Optional.

        Called in a grading process after each answer, but not after the answer that reaches ``--max-turns``. The calls
        for one conversation may run in different processes, so the reply must follow from the arguments alone. It may
        be an ``async def``. The limits of ``reward`` apply: if the hook raises, takes too long or returns something
        else, that conversation ends with reward 0.0 and the label ``turn:error:<Type>`` or ``turn:timeout``.

        Args:
            messages: the conversation so far: the prompt's messages, then answers (role ``assistant``) and replies in
                turn. A prompt that is text is one message of the role ``user``. The last message is an answer. Answers
                are untrusted.
            target: from ``collate``.

        Returns:
            The messages of the environment, to which the model then answers; or ``None`` to end the conversation. Their
            roles may be any that the chat template shows, except ``assistant``. A text is one message of the role
            ``user``. They may have 80,000 characters in all. After a prompt that is text, the model reads only their
            contents, without anything between them.
        """

    @hookspec(firstresult=True)
    def reward(
        self, model_output: str, target: Any, messages: list[Message], options: Mapping[str, Any]
    ) -> float | tuple[str | Mapping[str, Any], float] | Reward:
        """Grade one answer, or one conversation. Required.

        Called in a separate grading process, whose printed output is discarded. It may be an ``async def``, of which
        ``--reward-concurrency`` allows many at once. A run does not stop on a failure here, except on
        :class:`StopRun`: an exception counts as reward 0.0 with the label ``error:<Type>``. A call that takes longer
        than ``--reward-function-timeout`` counts as reward 0.0 with the label ``timeout``: it is cancelled, or its
        process is killed and replaced. A reward that fails on every made-up answer is refused before the run.

        Args:
            model_output: the generated text, without the prompt; of a conversation, the last answer. It is untrusted:
                parse it, and never ``eval`` it.
            target: from ``collate``.
            messages: the whole conversation, as ``turn`` gets it; empty if the task has no hook ``turn``.

        Returns:
            A number, ``(label, number)`` or a :class:`Reward`. Higher is better. The label may be a mapping: its
            ``"label"`` is the label, and its other numbers are metrics.
        """

    @hookspec(firstresult=True)
    def load_rows(
        self, split: str, path: str | None, options: Mapping[str, Any]
    ) -> Sequence[Row] | Mapping[str, Sequence[Row]] | None:
        """Load the rows of a data set. Optional.

        Called in the driver, once for each data set that the user names, or once with the path ``None`` if the user
        names none.

        Args:
            split: ``"train"`` or ``"eval"``.
            path: one data set from ``--train-dataset`` or ``--eval-dataset``; ``None`` for the task's own data.

        Returns:
            For ``"train"``, the rows; for ``"eval"``, a mapping from split name to rows, or rows alone. If the hook
            returns ``None``, esplug reads ``path`` itself: a saved DatasetDict or a folder of them, a json, jsonl, csv
            or parquet file, or a Hub id. ``None`` for the path ``None`` is an error that asks the user for a data set.
        """

    @hookspec(firstresult=True)
    def defaults(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recommend settings for the task. Optional.

        Called in the driver before the settings are resolved. A setting that is invalid is an error.

        Returns:
            Values of :class:`esplug.config.RunConfig` fields, by name. The user's config file and flags
            override them.
        """

    @hookspec(firstresult=True)
    def options(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Declare the task's options (``--task-option key=value``). Optional.

        Called when the task is loaded, in the driver and in grading processes.

        Args:
            given: the user's options by name, as text or, from a file, as its values. A task needs them only if some of
                its options depend on others. In grading processes, it holds all options, converted.

        Returns:
            Default value of each option, by name: a str, int, float or bool. esplug converts the user's text to the
            type of the default, and rejects options that are not declared.
        """

    @hookspec(firstresult=True)
    def examples(self) -> Sequence[Example]:
        """Show what the task can ask. Optional.

        Called in the driver, by ``esplug data list --task NAME`` only. It should return within a second.

        Returns:
            One example of each kind of question, in the order to show them.
        """


class DatasetSpec:
    """Hook of a data set that ``esplug data build`` makes."""

    @hookspec(firstresult=True)
    def build(self, fetch: Callable[[HubSource], Sequence[Row]]) -> Mapping[str, Mapping[str, Sequence[Row]]]:
        """Make the rows of the data set. Required.

        Called once by ``esplug data build NAME``, which saves the rows with a record of their sources. The same sources
        must give the same rows in the same order on every machine. If the hook raises, nothing is saved.

        Args:
            fetch: function that returns the rows of a :class:`HubSource`, from the Hub or from the user's local copy,
                and records their commit, checksum and licence.

        Returns:
            ``{"train": splits, "eval": splits}``, where either key may be missing. ``splits`` maps the name of a split
            to its rows, which all have the same columns.
        """


class ShapingSpec:
    """Hook of a reward shaping, also known as fitness shaping."""

    @hookspec(firstresult=True)
    def shape(self, rewards: "np.ndarray[Any, np.dtype[np.float64]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Turn rewards into utilities. Required.

        Called in the driver, once an iteration, after all answers are graded. It must not change ``rewards``, which the
        run logs. It must return the same utilities for the same rewards, or the run cannot be resumed. An exception,
        a wrong shape or a non-finite utility ends the run.

        Args:
            rewards: float64[N, B]; reward of member n on prompt b.

        Returns:
            float64[N]; utility of each member, which weights its perturbation in the update. If all utilities are
            zero, for example because all rewards are equal, the iteration leaves the weights unchanged.
        """


class LoggerSpec:
    """Hooks of a logger, and of a callback: an object that is passed to the trainer, as it is, in ``callbacks``.

    Each logger has its own thread, which makes all calls to it, in order. The run does not wait for ``log`` and
    ``samples``. Once 256 calls are waiting, further ones are dropped with a warning. The run does wait for the answers
    of ``on_iteration_end`` and ``on_evaluation_end``, because they can stop it: so it stops at the same iteration
    whatever the speed of threads.

    - If ``start`` raises, the run does not start. If another hook raises, esplug warns once and continues to call the
      logger.
    - If ``start`` hangs, the run goes on without it after 5 seconds: the calls wait until ``start`` returns, and an
      exception then is a warning. If ``finish`` has not returned 5 seconds after the run, esplug warns and abandons the
      logger. Both limits apply to all loggers together.
    - If ``on_iteration_end`` or ``on_evaluation_end`` has not answered after 60 seconds, esplug warns, ignores the
      answer, and makes no further calls to the logger. An answer of a wrong type is an exception.

    The thread is a daemon: it ends with the process, even in the middle of a call. It cannot read from the terminal.

    Set the attribute ``synchronous = True`` on the module or object to be called in the run's own thread instead. The
    metrics are then recorded when ``log`` returns. Such a logger delays the run by the time it takes, so it must not
    wait for a network. ``console`` and ``jsonl`` are synchronous.
    """

    @hookspec
    def start(self, config: "RunConfig", run_dir: Path, iteration: int) -> None:
        """Open the log. Optional.

        Called once, before training and before any other hook.

        Args:
            config: the run's settings.
            run_dir: the run directory. Write all files there.
            iteration: 0, or the iteration from which a resumed run continues. Metrics that an earlier process logged
                for this and later iterations are logged again.
        """

    @hookspec
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics. Required.

        Called once an iteration, and once an evaluation.

        Args:
            step: iteration, counted from 0; for an evaluation, the number of updates made before it.
            metrics: values by name, such as ``train/reward/mean``, ``time/generate`` or
                ``eval/<split>/pass@1/mean``; may be NaN or infinite. The logger gets its own copy.
        """

    @hookspec
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the samples of an evaluation. Optional.

        Called once for each split of an evaluation.

        Args:
            step: number of updates made before the evaluation.
            rows: samples of one split. Their keys are ``split``, ``index`` (of the prompt), ``sample`` (of the answer
                to that prompt, from 0), ``prompt``, ``target``, ``output``, ``reward``, ``label``, ``correct``,
                ``passed``, ``tokens``, ``finished``, and ``metrics`` if the task returns any. Samples of tasks with
                several turns also have ``conversation``, the list of messages after the prompt, and ``ended``.
        """

    @hookspec(firstresult=True)
    def on_iteration_end(self, event: "IterationEnd") -> str | None:
        """Look at an iteration, and stop the run if it should not go on. Optional.

        Called once an iteration, after ``log`` and when the update is on the disk.

        Args:
            event: the iteration.

        Returns:
            ``None``; or a text that says why the run should stop. It then makes no further update, saves and evaluates
            the model, and ends with the status ``stopped``. It can be resumed. If several loggers ask for a stop, the
            reason of the first one counts.
        """

    @hookspec(firstresult=True)
    def on_evaluation_end(self, event: "EvaluationEnd") -> str | None:
        """Look at an evaluation, and stop the run if it should not go on. Optional.

        Called once an evaluation, after ``log`` and ``samples``.

        Args:
            event: the evaluation. It includes the earlier ones. A callback that computes its answer from these alone
                stops a resumed run where it would have stopped without the interruption.

        Returns:
            As ``on_iteration_end`` does.
        """

    @hookspec
    def on_run_end(self, event: "RunEnd") -> None:
        """Look at the end of the run. Optional.

        Called once, before ``finish``, if ``start`` returned.

        Args:
            event: status, reason and directory of the run.
        """

    @hookspec
    def finish(self, status: str) -> None:
        """Close the log. Optional.

        Called once, when the run ends, if ``start`` returned.

        Args:
            status: ``finished``, also for a run that was stopped early; ``failed`` or ``interrupted``.
        """
