"""List of tested architectures: the page of models says the same."""

from pathlib import Path

import pytest

from esplug.vllm_worker.families import DIRECT, how_written


@pytest.mark.parametrize("architecture", DIRECT)
def test_the_page_of_models_says_how_weights_are_written(architecture) -> None:
    (row,) = (line for line in Path("docs/models.md").read_text().splitlines() if f"`{architecture}`" in line)
    way = row.split("|")[3].strip()
    assert way.startswith("directly" if DIRECT[architecture] else "through vLLM")
    assert ("directly" in how_written([architecture])) == DIRECT[architecture]
