"""The memory that is free for a run: within limits of control groups of either version, at any depth."""

from types import SimpleNamespace

import pytest

from esplug.engines.actor import Engine
from esplug.utils.free_memory import free_memory

AVAILABLE = 1000
OLD, NEW = "4:cpu,memory:/job/step\n0::/\n", "0::/job/step\n"
UNLIMITED = "9223372036854771712"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (None, {}, AVAILABLE),  # not Linux
        ("0::/\n", {}, AVAILABLE),
        ("0::/\n", {"": ("300", 100, 0)}, 200),
        ("0::/\n", {"": ("300", 290, 150)}, 160),  # files that were read give way
        ("0::/\n", {"": ("5000", 100, 0)}, AVAILABLE),
        ("0::/\n", {"": ("100", 120, 0)}, 0),
        (NEW, {"job/step": ("max", 100, 0), "job": ("400", 100, 20)}, 320),
        (NEW, {"job/step": ("200", 100, 0), "job": ("400", 100, 0)}, 100),
        (NEW, {"": ("300", 100, 0)}, 200),  # a container that is shown its host's path
        (OLD, {"memory": ("300", 100, 50)}, 250),
        (OLD, {"memory/job/step": ("300", 100, 50), "memory": (UNLIMITED, 900, 0)}, 250),
    ],
)
def test_the_tightest_limit_counts(groups, limits, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))
    if groups is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    old = groups == OLD
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for place, (limit, used, cached) in limits.items():
        folder = tmp_path / "sys" / "fs" / "cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{'total_' * old}inactive_file {cached}\n")
    assert free_memory(tmp_path) == expected


def test_engines_count_within_the_limit_too(monkeypatch) -> None:
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr("esplug.utils.free_memory._free_in_groups", lambda root: [7])
    assert Engine(None).location() == ("node", 7)
