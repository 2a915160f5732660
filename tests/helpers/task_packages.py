"""Sources of valid task plugins, for tests that install them."""

from collections.abc import Callable

GOOD = """
from esplug import hookimpl

@hookimpl
def options():
    return {"shots": 0, "level": "easy", "scale": 1.0, "strict": False}

@hookimpl
def defaults(options):
    if options["shots"] > 8:
        raise ValueError(f"shots must be at most 8, not {options['shots']}")
    return {"max_tokens": 16 + options["shots"]}

@hookimpl
def collate(batch):
    return [row["question"] for row in batch], [row["answer"] for row in batch]

@hookimpl
def template(question):
    return question + "="

@hookimpl
def reward(model_output, target, options):
    return options["scale"] * (model_output == target)
"""
PLAIN = GOOD[: GOOD.index("@hookimpl\ndef options")] + GOOD[GOOD.index("@hookimpl\ndef collate") :].replace(
    'options["scale"] *', "options and 1.0 *"
)

Install = Callable[..., None]
