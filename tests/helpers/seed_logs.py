"""A base model with every kind of tensor, and the seed logs of runs that started from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step, movement
from esplug.weights.master import MasterWeights

COEFFICIENTS = [(0.01, -0.02, 0.005, 0.003), (0.0, -0.0, 0.0, 0.0), (1e-4, 2e-3, -5e-3, 1e-3), (0.02, 0.0, 0.01, -0.01)]


def mixed_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of every type; some sizes are not multiples of a chunk or a Philox block; some values are -0.0."""
    generator = torch.Generator().manual_seed(3)
    made = {
        "embed": torch.randn(701, 33, generator=generator).bfloat16(),
        "layers.0.w": torch.randn(7, 5, 3, generator=generator).half(),
        'layers.1 "é"': torch.randn(1013, generator=generator),
        "zeros": torch.tensor([0.0, -0.0, 0.0, -0.0, -0.0]).bfloat16(),
        "empty": torch.empty(0, 4).bfloat16(),
        "scalar": torch.tensor(0.3),
        "layers.1.proj.weight": torch.randn(61, 37, generator=generator).bfloat16(),
        "steps": torch.arange(3001),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    return dict(sorted(made.items()))


def make_log(
    path: Path,
    base: Path,
    *,
    master_dtype: Any = "float32",
    antithetic: bool = True,
    settings: Any = None,
    name: str | None = None,
    revision: str | None = None,
    momentum: float = 0.0,
    low_rank: int | None = None,
) -> list[MasterWeights]:
    """Write the log of a run that started from ``base``. Returns the master weights after 0, 1, ... iterations."""

    def master(upto: int) -> MasterWeights:
        weights = MasterWeights.load(base, master_dtype, low_rank=low_rank)
        for done in range(1, upto + 1):
            seeds, coefficients = movement(steps[:done], 11)
            weights.update(seeds, coefficients)
        return weights

    steps: list[Step] = []
    first = MasterWeights.load(base, master_dtype)
    header = Header(Base(name or str(base), revision, first.checksum()), master_dtype, 11, settings or {}, low_rank)
    masters = [first]
    with SeedLog.create(path, header) as log:
        for number, coefficients in enumerate(COEFFICIENTS):
            steps.append(Step(number, coefficients, antithetic, 0, momentum))
            masters.append(master(number + 1))
            steps[-1] = replace(steps[-1], checksum=masters[-1].checksum())
            log.append(steps[-1])
    return masters


def same_files(left: Path, right: Path) -> None:
    """Compare weight files byte for byte."""
    names = sorted(file.name for file in right.glob("*.safetensors*"))
    assert sorted(file.name for file in left.glob("*.safetensors*")) == names
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
