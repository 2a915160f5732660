"""Files of a model, in a folder or on the Hugging Face Hub: the names of all, and the content of the small ones."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

#: Small files that say what a model is. They are read before its weights are downloaded.
DESCRIPTIONS = (
    *("config.json", "tokenizer_config.json", "adapter_config.json", "README.md"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
)

#: Ends of the names of quantised models, as publishers write them.
_QUANTISED_NAME = re.compile(
    r"[-_.](unsloth-bnb|bnb|awq|gptq|fp8|gguf|int[48]|[48]bits?|mxfp4|nvfp4|fp4|w\d+a\d+|exl[23]|hqq|aqlm|torchao|"
    r"quantized|dynamic|block|g\d+|i\d|q\d\w*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        name: the user's name for it, a path or a Hub id.
        folder: folder with at least the :data:`DESCRIPTIONS` that exist.
        names: names of all files at the top level.
        complete: whether the folder has them all, rather than a part that was downloaded.
    """

    name: str
    folder: Path
    names: frozenset[str]
    complete: bool

    @classmethod
    def of(cls, folder: Path, name: str, names: Iterable[str] | None = None) -> "ModelFiles":
        """Describe a folder. ``names`` are those of the whole repository, if the folder has only a part of it."""
        if names is not None:
            return cls(name, folder, frozenset(names), complete=False)
        return cls(name, folder, frozenset(path.name for path in folder.iterdir()), complete=True)

    def matching(self, *patterns: str) -> list[str]:
        """Return the sorted names that match one of the patterns, such as ``*.gguf``."""
        return sorted(name for name in self.names if any(fnmatch(name.lower(), pattern) for pattern in patterns))

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; return ``{}`` if the file is missing or damaged."""
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def made_from(self) -> str | None:
        """Return the model that this one was made from: as its card says, or else guessed from its name."""
        from huggingface_hub import metadata_load

        try:
            stated = (metadata_load(self.folder / "README.md") or {}).get("base_model")
        except Exception:  # no card, or one whose metadata are not YAML
            stated = None
        stated = stated[0] if isinstance(stated, list) and stated else stated
        if isinstance(stated, str) and stated.strip() and stated.isprintable():
            return stated.strip()
        name = shorter = self.name.partition("@")[0].rstrip("/")
        while (cut := _QUANTISED_NAME.sub("", shorter)) != shorter:
            shorter = cut
        return f"perhaps {Path(shorter).name}" if shorter != name else None
