"""reasoning-gym task: every generator of the library reasoning-gym, alone or in a mixture, graded by the library.

A task is a few functions marked ``@hookimpl``. esplug calls them in the order in which they appear here. This module
does not import the library, which takes seconds. ``options`` loads it, so that a grading process has it when it grades.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug import Reward, hookimpl
from esplug.hookspecs import Example, Prompt
from esplug_tasks_reasoning_gym import answers, catalogue, prompts
from esplug_tasks_reasoning_gym.selection import NAME, Selection

#: Options of the task itself. All others are options of generators.
OPTIONS: Mapping[str, Any] = {
    NAME: "chain_sum",
    "seed": 0,
    "size": 500,
    "eval_size": 100,
    "shots": 0,
    "answer_from": "tags",
    "template": "chat",
    "instruction": "",
}


@hookimpl
def options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Declare the options of the task, and those of the generators that the user sets.

    ``name``: generators, such as ``chain_sum`` or ``chain_sum:2,leg_counting:1``. ``seed``, ``size``, ``eval_size``: of
    the rows. ``shots``: worked examples in a prompt, 0 to 8. ``answer_from``: tags, boxed or last-line. ``template``:
    chat or plain. ``instruction``: how to answer.
    """
    selection = _selection({**OPTIONS, **given})
    selection.load()
    return {**OPTIONS, **selection.declared()}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stop at the closing tag."""
    prompts.check(options)
    return {"stop": ["</answer>"], "max_tokens": 512} if options["answer_from"] == "tags" else {"max_tokens": 512}


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Make the rows: for evaluation, one split per generator."""
    from esplug_tasks_reasoning_gym import rows

    if path is not None:
        raise ValueError(
            f"its rows come from generators; leave out the data set {path} and choose with the option name"
        )
    wanted = rows.Wanted(_selection(options), *(options[name] for name in ("seed", "size", "eval_size", "shots")))
    return wanted.train() if split == "train" else wanted.held_out()


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Ask the generator's question, and grade with all that the library's grader needs."""
    prompts.check(options)
    for row in batch:
        answers.check(row["task"], row["answer"], options["answer_from"])
    questions = [(row["question"], row["examples"]) for row in batch]
    return questions, [{name: row[name] for name in ("task", "answer", "metadata")} for row in batch]


@hookimpl
def template(question: tuple[str, Sequence[tuple[str, str]]], options: Mapping[str, Any]) -> Prompt:
    """Add worked examples, and how to give the answer."""
    return prompts.ask(*question, options)


@hookimpl
def reward(model_output: str, target: Mapping[str, Any], options: Mapping[str, Any]) -> Reward:
    """Give the score of the library's grader, from 0 to 1."""
    from esplug_tasks_reasoning_gym import grading

    answer = answers.find(model_output, options["answer_from"])
    return grading.grade(answer, target, _selection(options))


@hookimpl
def examples() -> Sequence[Example]:
    """Return one example of every generator, from a file of this package."""
    return catalogue.read()


def _selection(options: Mapping[str, Any]) -> Selection:
    for name, value in options.items():
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"option {name!r} must be a number or text, not {value!r}; write lists as JSON: '[1, 2]'")
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    return Selection.of(options[NAME], tuple(sorted(others.items())))
