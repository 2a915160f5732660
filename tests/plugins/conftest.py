"""Plugins installed as users install them: packages with metadata on sys.path."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.task_packages import PLAIN, Install


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution as pip would: a module and metadata, in a folder on sys.path."""
    modules: list[str] = []

    def install(
        distribution: str,
        source: str = PLAIN,
        *,
        name: str | None = None,
        kind: str = "task",
        attribute: str = "",
        version: str | None = "1.2",
        entry_points: str | None = None,
    ) -> None:
        module = f"esplug_test_{distribution.replace('-', '_')}_{len(modules)}"
        modules.append(module)
        folder = tmp_path / f"site{len(modules)}"
        info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
        if version is not None:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        declared = f"[esplug.{kind}s]\n{name or distribution} = {module}{attribute}\n"
        (info / "entry_points.txt").write_text(declared if entry_points is None else entry_points)
        monkeypatch.syspath_prepend(folder)

    yield install
    for module in modules:
        sys.modules.pop(module, None)
