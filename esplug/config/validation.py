"""Validation of single settings, beyond what a type and limits express."""

import re
from collections.abc import Iterable, Mapping
from os import fsencode
from pathlib import Path
from typing import Any
from unicodedata import category

from esplug.utils.local_paths import absolute, exists

_MAX_TEXT = 4096  # characters; also the longest path on Linux
_NOT_IN_A_LINE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators


def split_list(value: Any) -> Any:
    """Split a comma-separated text, or every item of a list, into items without blanks around them."""
    if value is None or value is False:
        return []
    items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [part for item in items for part in (p.strip() for p in str(item).split(",")) if part]


def gpu_list(value: Any) -> Any:
    """Normalize GPU indices to text such as ``0,1``, and ``all`` to ``None``."""
    if value is None or value == "all":
        return None
    text = value if isinstance(value, str) else ",".join(map(str, value if isinstance(value, Iterable) else [value]))
    ids = [part.strip() for part in text.split(",")]
    if text != "none" and (not all(re.fullmatch("[0-9]{1,4}", part) for part in ids) or len(set(ids)) < len(ids)):
        raise ValueError("give distinct GPU indices such as 0,1, or 'none', or 'all'")
    return ",".join(ids)


def with_jsonl(value: list[str]) -> list[str]:
    """Add the jsonl logger, whose file other commands read."""
    return value if "jsonl" in value else [*value, "jsonl"]


def ascending(value: list[int]) -> list[int]:
    """Sort the k of pass@k, and add 1."""
    if any(k < 1 for k in value):
        raise ValueError("every k must be at least 1")
    return sorted({1, *value})


def one_line(value: str | None) -> str | None:
    """Require one line of text that is not blank."""
    if value is None:
        return None
    if not value.strip():
        raise ValueError("must not be empty")
    if len(value) > _MAX_TEXT or any(category(character) in _NOT_IN_A_LINE for character in value):
        raise ValueError(f"must be one line of at most {_MAX_TEXT} characters, without control characters")
    return value


def absolute_path(value: str | None) -> str | None:
    """Make the path of an existing file or folder absolute, so that it has the same meaning in any directory."""
    return value and absolute(value)


def absolute_sources(value: str | None) -> str | None:
    """Make the existing paths in a comma-separated list of data sources absolute, but keep names of other kinds."""
    if value is None or exists(value):
        return absolute_path(value)
    sources = [_absolute_source(source.strip()) for source in value.split(",")]
    return value if any("," in source for source in sources) else ",".join(sources)


def _absolute_source(source: str) -> str:
    """Make one source absolute. A folder's name can be followed by the configuration to use: ``folder:config``."""
    folder, colon, config = source.rpartition(":")
    if colon and config and not exists(source) and exists(folder):
        return f"{absolute(folder)}:{config}"
    return absolute(source)


def each_one_line(value: list[str]) -> list[str]:
    """Require one line of text in every item."""
    return [item for item in value if one_line(item)]


def short_names(value: list[str]) -> list[str]:
    """Require one line of at most 64 characters, which is the limit of W&B, in every item. Drop repeated items."""
    if any(len(item) > 64 for item in each_one_line(value)):
        raise ValueError("must have at most 64 characters")
    return list(dict.fromkeys(value))


def ray_address(value: str | None) -> str | None:
    """Require ``auto``, or a host and port."""
    if value and not re.fullmatch(r"auto|(ray://)?[\w.:\[\]-]+:[0-9]{1,5}", value, re.ASCII):
        raise ValueError("must be 'auto', or host:port")
    return value


def no_empty_text(value: list[str]) -> list[str]:
    """Refuse an empty stop text."""
    if "" in value:
        raise ValueError("a stop text must not be empty")
    return value


def utf8(value: Any) -> Any:
    """Refuse surrogates, which stand for bytes on the command line that are not UTF-8 and which no file can hold."""
    if isinstance(value, str):
        if any(category(character) == "Cs" for character in value):
            raise ValueError("must be UTF-8 text")
    elif isinstance(value, Mapping):
        utf8([*value, *value.values()])
    elif isinstance(value, list):
        for item in value:
            utf8(item)
    return value


def not_blank(value: str | None) -> str | None:
    """Require text, of any number of lines."""
    if value is not None and not value.strip():
        raise ValueError("must not be empty")
    return value


def folder_name(value: str | None) -> str | None:
    """Require the name of a single folder."""
    if value is not None and (
        value != Path(value).name or value == ".." or value.startswith("-") or len(fsencode(value)) > 200
    ):
        raise ValueError("must be one folder name of at most 200 bytes, without slashes or a leading dash")
    return value


def evaluation_metric(value: str) -> str:
    """Require the name of a metric of evaluations."""
    if not re.fullmatch(r"eval/.+/.+", one_line(value) or ""):
        raise ValueError("must be a metric of evaluations, such as eval/average/pass@1/mean")
    return value
