"""Environments of the verifiers library: packages that its own template lays out, with tasksets for tests."""

import contextlib
import io
from pathlib import Path

IMPORT = "import verifiers.v1 as vf\n"

#: A valid environment. Its parts are replaced to break it.
TASKSET = (
    IMPORT
    + """
import asyncio
from typing import Literal


class SumsData(vf.TaskData):
    answer: int


class SumsTaskConfig(vf.TaskConfig):
    tolerance: float = 1
    near: float = 0.5


class SumsTask(vf.Task[SumsData, vf.State, SumsTaskConfig]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=0.5)
    async def near(self, task, trace) -> float:
        await asyncio.sleep(0)
        away = abs(int(trace.last_reply) - task.answer)
        return self.config.near if away <= self.config.tolerance else 0.0

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class SumsConfig(vf.TasksetConfig):
    num_tasks: int = 20
    split: Literal["train", "test"] = "train"
    words: list[str] = ["plus"]
    note: str | None = None
    task: SumsTaskConfig = SumsTaskConfig(near=0.25)


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self) -> list[SumsTask]:
        first = {"train": 1, "test": 3}[self.config.split]
        return [
            SumsTask(SumsData(prompt=f"{n} {self.config.words[0]} {first}", answer=n + first), self.config.task)
            for n in range(self.config.num_tasks)
        ]
"""
)


def make(folder: Path, name: str, taskset: str = TASKSET, exports: str | None = None) -> Path:
    """Lay out a package as ``vf-init`` does, write its taskset, and return the folder that an editable install adds.

    Args:
        folder: where the package goes.
        name: of the environment.
        taskset: source of ``taskset.py``; it may use classes of ``vf`` only.
        exports: source of ``__init__.py``; ``None`` for the template's, which exports ``SumsTaskset``.
    """
    from verifiers.v1.cli.init import scaffold
    from verifiers.v1.configs.cli.init import InitConfig

    with contextlib.redirect_stdout(io.StringIO()):
        package = scaffold(InitConfig(name=name, path=str(folder)))
    module = package / package.name
    (module / "taskset.py").write_text(taskset)
    init = f"from {package.name}.taskset import SumsTaskset\n\n__all__ = ['SumsTaskset']\n"
    (module / "__init__.py").write_text(init if exports is None else exports)
    return package
