"""The receiver of a shipped model, which works in the cache of its node."""

import subprocess
import sys
from pathlib import Path

import pytest

from esplug.engines.shipping import Receiver, model_hash

_HOLD = """
import sys
from esplug.engines.shipping import Receiver
receiver = Receiver()
receiver.begin(sys.argv[1], 1)
receiver.write("config.json", b"{")
print("begun", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_run_left_is_removed_but_not_what_another_is_writing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", _HOLD]
    runs = [
        subprocess.Popen([*command, digest], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for digest in ("killed", "other")
    ]
    assert [run.stdout.readline() for run in runs] == [b"begun\n"] * 2
    runs[0].kill()
    runs[0].wait()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    receiver, digest = Receiver(), model_hash(model)
    assert receiver.begin(digest, 2) == ""
    assert sorted(path.name.split(".")[1] for path in (tmp_path / "esplug" / "models").iterdir()) == sorted(
        ["other", digest]
    )
    receiver.write("config.json", b"{}")
    shipped = receiver.finish(digest)
    assert (Path(shipped) / "config.json").read_text() == "{}"
    assert Receiver().begin(digest, 2) == shipped
    runs[1].communicate()


def test_files_that_changed_on_their_way_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    receiver = Receiver()
    receiver.begin("0" * 32, 2)
    receiver.write("config.json", b"{}")
    with pytest.raises(OSError, match="not those that were sent"):
        receiver.finish("0" * 32)
    assert list((tmp_path / "esplug" / "models").iterdir()) == []
