"""One process at a time in a run's directory."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esplug.errors import UserError
from esplug.utils import file_lock as run_lock
from esplug.utils.file_lock import FILE_NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from esplug.utils.file_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_told_who_is_first_and_what_to_do(tmp_path, holder) -> None:
    with pytest.raises(UserError) as refused, locked(tmp_path):
        pass
    said = str(refused.value)
    assert re.search(rf"in use by process {holder.pid} of \S+ on \S+ since \d{{4}}-", said), said
    assert f"kill {holder.pid}" in said
    assert "\n" not in said


def test_who_holds_a_directory_can_be_asked_without_taking_it(tmp_path, holder) -> None:
    assert f"in use by process {holder.pid} of " in (run_lock.holder(tmp_path) or "")
    holder.kill()
    holder.wait()
    assert run_lock.holder(tmp_path) is None
    assert run_lock.is_abandoned(tmp_path)
    (tmp_path / FILE_NAME).write_text('{"host": "another"}')  # whose locks are perhaps not seen here
    assert not run_lock.is_abandoned(tmp_path)
    assert run_lock.holder(tmp_path / "nothing") is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_first_lets_the_next_in(tmp_path, holder, number) -> None:
    holder.send_signal(number)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()
    with locked(tmp_path):
        pass


def test_a_child_process_does_not_keep_it(tmp_path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        assert run_lock.is_held(tmp_path) is False
        assert child.poll() is None, "the child ended before the check"
    finally:
        child.kill()
        child.wait()
