"""End tokens: the ids at which an answer ends, from the model's files, its tokenizer and the usual chat formats."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esplug.errors import UserError
from esplug.utils.console import say

#: Tokens that end a turn in the chat formats of ChatML, Llama, Gemma and Phi.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
#: Parts of a multimodal model's configuration that describe its language model.
_LANGUAGE_MODELS = ("text_config", "llm_config", "language_config", "thinker_config")


def end_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer, in ascending order.

    They are the union of every ``eos_token_id`` in the model's ``generation_config.json`` and ``config.json``, the
    tokenizer's end-of-text token, and the tokens that end a turn in the usual chat formats. A base model that is
    prompted in a chat format would otherwise go on and invent the next turns.

    Args:
        folder: the model's folder.
        tokenizer: the model's tokenizer, of transformers.

    Raises:
        UserError: a file is damaged, or an ``eos_token_id`` is neither an integer nor a list of integers.
    """
    added = tokenizer.get_added_vocab()
    ids = {added[token] for token in _TURN_ENDS if token in added}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    config = _read(folder / "config.json")
    size = max([len(tokenizer), *(size for part in _parts(config) if type(size := part.get("vocab_size")) is int)])
    for path, parts in {
        folder / "generation_config.json": [_read(folder / "generation_config.json")],
        folder / "config.json": list(_parts(config)),
    }.items():
        named = {each for part in parts for each in _named(path, part.get("eos_token_id"))}
        if outside := sorted(each for each in named if not 0 <= each < size):
            listed = ", ".join(map(str, outside))
            say(f"{path}: eos_token_id {listed} is not among the model's {size:,} tokens, so no answer ends there")
        ids |= named.difference(outside)
    return tuple(sorted(ids))


def _named(path: Path, value: Any) -> list[int]:
    """Return the ids of an ``eos_token_id``: an integer, a list of integers, or nothing."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(each) is int for each in ids):
        shown = json.dumps(value)[:60]
        raise UserError(f"{path}: eos_token_id must be an integer or a list of integers, not {shown}; correct the file")
    return ids


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a configuration and those of the language model inside it."""
    yield config
    for name in _LANGUAGE_MODELS:
        if isinstance(inner := config.get(name), dict):
            yield from _parts(inner)


def _read(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; ``{}`` if it does not exist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object; fetch the model again")
    return content
