"""Model folders: writing the fine-tuned weights where other tools can open them."""

import shutil
from collections.abc import Callable
from pathlib import Path

from esplug.errors import RunError

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth", ".gguf")


def save_model(save_weights: Callable[[Path], None], base: Path, target: Path) -> Path:
    """Write a model folder that ``transformers`` and vLLM open as it is.

    Args:
        save_weights: writes the safetensors into the folder it is given.
        base: the model's folder, whose configuration and tokenizer are copied.
        target: where the model goes; it appears complete or not at all.
    """
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, temporary / file.name)
    save_weights(temporary)
    if not any(temporary.glob("*.safetensors")):
        raise RunError(
            f"{target.parent}: not visible from the engine's machine; use an output directory that all nodes share"
        )
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    return target
