"""Checkpoints with damage, full disks, kills at random moments, and hostile files."""

import builtins
import importlib
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from esplug.checkpoints.export import export
from esplug.checkpoints.folders import newest_first, periodic_name, prune, save_model, verify
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header
from esplug.checkpoints.starting_model import starting_model
from esplug.errors import UserError
from esplug.weights.master import MasterWeights
from tests.helpers.files import files_no_longer_than


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    """A folder with the periodic checkpoints 10 and 20."""
    master = MasterWeights.load(tiny_model)
    for iteration in (10, 20):
        save_model(master.save, tiny_model, tmp_path / "checkpoints" / periodic_name(iteration))
    return tmp_path / "checkpoints"


def total(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("one flipped byte or a truncation in a checkpoint", 100)
def test_truncation_and_one_flipped_byte_anywhere_are_detected_and_named(saved) -> None:
    newest = saved / "iteration-20"
    files = sorted(newest.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "esplug.json"} <= {file.name for file in files}
    draw = random.Random(4)
    for number in range(100):
        file = files[number % len(files)]
        good = file.read_bytes()
        if number // len(files) % 2:
            file.write_bytes(good[: draw.randrange(len(good))])
        else:
            place, change = draw.randrange(len(good)), draw.randrange(1, 256)
            file.write_bytes(good[:place] + bytes([good[place] ^ change]) + good[place + 1 :])
        with pytest.raises(UserError) as caught:
            verify(newest)
        assert str(caught.value).startswith(f"{file}: "), (number, file.name)
        assert [k for k, folder in newest_first(saved) if passes(folder)] == [10], "the last intact checkpoint is found"
        file.write_bytes(good)
    verify(newest)


def passes(folder: Path) -> bool:
    try:
        verify(folder)
    except UserError:
        return False
    return True


# --- a full disk -----------------------------------------------------------------------------------------------

SIZES = 20


def still_good(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    verify(folder)
    found = load_file(folder / "model.safetensors")
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.fault("full disk while a checkpoint is written", 2 * SIZES, "the new checkpoint")
def test_a_file_size_limit_costs_only_the_new_checkpoint(tiny_model, saved) -> None:
    expected, master = load_file(saved / "iteration-20" / "model.safetensors"), MasterWeights.load(tiny_model)
    largest = (saved / "iteration-20" / "model.safetensors").stat().st_size
    for number in range(SIZES):
        for target in (saved / "iteration-20", saved / "iteration-30"):
            with files_no_longer_than(1 + (largest - 2) * number // (SIZES - 1)), pytest.raises(OSError) as caught:  # noqa: PT011
                save_model(master.save, tiny_model, target)
            assert caught.value.filename == str(target)
            assert str(target) in str(caught.value)
        assert sorted(path.name for path in saved.iterdir()) == ["iteration-10", "iteration-20"]
        assert still_good(saved / "iteration-20", expected)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small mounted disk."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault("full disk while a checkpoint is written", 3 * SIZES, "the new checkpoint")
@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount")
def test_a_full_disk_costs_only_the_new_checkpoint(tiny_model, disk, tmp_path) -> None:
    master = MasterWeights.load(tiny_model)
    previous = save_model(master.save, tiny_model, disk / "iteration-10")
    expected, size = load_file(previous / "model.safetensors"), total(previous)
    torch.save(expected, tmp_path / "w.pth")
    SeedLog.create(tmp_path / "seeds.log", Header(Base(str(tiny_model), None, master.checksum()), "float32", 1)).close()

    def write(name: str) -> None:
        save_model(master.save, tiny_model, disk / name)

    def replay(name: str) -> None:
        export(tmp_path / "seeds.log", disk / name)

    def join(name: str) -> None:
        with ExitStack() as stack:
            starting_model(str(tiny_model), str(tmp_path / "w.pth"), None, disk / name, stack)

    for number in range(SIZES):
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(free - (size - 8192) * number // (SIZES - 1)))
        for action in (write, replay, join):
            with pytest.raises((OSError, UserError)) as caught:
                action("iteration-20")
            message = str(caught.value)
            assert str(disk) in message
            assert "No space left" in message or "make room" in message
            shutil.rmtree(disk / "iteration-20", ignore_errors=True)  # the scratch folder of joining
            assert sorted(path.name for path in disk.iterdir()) == ["ballast", "iteration-10"]
        (disk / "ballast").unlink()
        assert still_good(previous, expected)
    write("iteration-20")
    assert still_good(disk / "iteration-20", expected)


# --- kills -----------------------------------------------------------------------------------------------------

# Reads lines; for each, forks a process that saves one checkpoint after another until it is killed.
SAVER = """
import os, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from esplug.checkpoints.folders import save_model, periodic_name

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
for line in sys.stdin:
    first = int(line)
    pid = os.fork()
    if not pid:
        for number in range(first, first + 10_000):
            weights = {f"w{i}": np.full((50_000,), number, dtype=np.float32) for i in range(4)}
            write = lambda to: save_file(weights, to / "model.safetensors")
            for name in (periodic_name(number), "model"):
                save_model(write, base, folder / name)
            os.write(1, f"{number}\\n".encode())
    print("pid", pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


@pytest.mark.fault("SIGKILL while a checkpoint is written", 20, "the new checkpoint")
def test_a_kill_at_any_moment_leaves_the_previous_checkpoint_or_the_new_one(tiny_model, tmp_path) -> None:
    folder = tmp_path / "checkpoints"
    draw = random.Random(1)
    finished, interrupted = -1, 0
    command = [sys.executable, "-c", SAVER, str(tiny_model), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        for _ in range(20):
            print(finished + 1, file=saver.stdin, flush=True)
            said = [saver.stdout.readline()]
            while not said[-1].startswith("pid"):
                said.append(saver.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.15))
            os.kill(int(said[-1].split()[1]), signal.SIGKILL)
            while said[-1] != "dead\n":
                said.append(saver.stdout.readline())
            finished = max([finished, *(int(line) for line in said if line[:-1].isdecimal())])
            interrupted += any(folder.glob(".*"))
            kept = dict(newest_first(folder))
            assert set(range(max(0, finished - 1), finished + 1)) <= kept.keys() <= set(range(finished + 2))
            for number, path in kept.items():
                assert written(path) == number
            prune(folder, 3)
            assert not any(folder.glob(".*"))
            if finished >= 0:
                assert written(folder / "model") in (finished, finished + 1)
        saver.stdin.close()
    assert finished > 0
    assert interrupted > 5, "too few kills hit a save"


def written(folder: Path) -> float:
    """Return the value that all weights of a checkpoint have."""
    verify(folder)
    (value,) = torch.cat(list(load_file(folder / "model.safetensors").values())).unique().tolist()
    return value


# --- hostile files ---------------------------------------------------------------------------------------------


class Calls:
    """An object that unpickles into the result of a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def payloads(marker: Path) -> dict[str, Any]:
    """Return objects that create the file ``marker`` when they are unpickled."""
    system = Calls(getattr, Calls(importlib.import_module, "os"), "system")
    return {
        "os.system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Calls(builtins.exec, f"open({str(marker)!r}, 'w').close()"),
        "importlib": Calls(list, Calls(map, system, [f"touch {marker}"])),
        "subprocess": Calls(subprocess.call, ["touch", str(marker)]),
    }


def torch_file(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def with_pickle(file: bytes, program: bytes) -> bytes:
    """Return a file of ``torch.save`` with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return buffer.getvalue()


def tar(program: bytes) -> bytes:
    """Return a file in torch's format from before 2017."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(program)
            archive.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()


KINDS: dict[str, Callable[[Any, dict[str, torch.Tensor]], bytes]] = {
    "torch.save": lambda evil, state: torch_file({**state, "x": evil}),
    "wrapped": lambda evil, state: torch_file({"state_dict": state, "optimizer": [{"x": evil}]}),
    "other pickle in the zip": lambda evil, state: with_pickle(torch_file(state), pickle.dumps(evil, 2)),
    "plain pickle": lambda evil, state: pickle.dumps(evil),
    "plain pickle, protocol 0": lambda evil, state: pickle.dumps(evil, 0),
    "old torch": lambda evil, state: torch_file({**state, "x": evil}, _use_new_zipfile_serialization=False),
    "tar": lambda evil, state: tar(pickle.dumps(evil)),
}


@pytest.mark.fault("malicious pickle as .pth", 1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("payload", ["os.system", "eval", "exec", "importlib", "subprocess"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tiny_model, tmp_path, kind, payload) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    evil = payloads(marker)[payload]
    path.write_bytes(KINDS[kind](evil, load_file(tiny_model / "model.safetensors")))
    with pytest.raises(UserError) as caught, ExitStack() as stack:
        starting_model(str(tiny_model), str(path), None, tmp_path / "scratch", stack)
    message = str(caught.value)
    assert message.startswith(f"--checkpoint {path}: ")
    assert "\n" not in message
    assert "weights_only" not in message, "the message must not suggest loading it anyway"
    assert any(words in message for words in ("refused", "not written by torch.save", "torch's old format"))
    assert not marker.exists()
    assert not any((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("payload", ["os.system", "eval", "exec", "importlib", "subprocess"])
def test_these_pickles_are_malicious(tmp_path, payload) -> None:
    marker = tmp_path / "marker"
    torch.load(io.BytesIO(torch_file({"x": payloads(marker)[payload]})), weights_only=False)
    assert marker.exists()


@pytest.mark.fault("one flipped byte in a .pth", 100)
def test_a_flipped_byte_in_a_pth_is_refused_or_has_no_effect(tiny_model, tmp_path) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    good = torch_file(weights)
    program = good.index(b"data.pkl")
    draw, refused = random.Random(2), 0
    for number in range(100):
        content = bytearray(good)
        ranges = ((program, program + 3000), (len(good) - 3000, len(good)), (0, len(good)))
        content[draw.randrange(*ranges[number % 3])] ^= draw.randrange(1, 256)
        (tmp_path / "w.pth").write_bytes(content)
        with ExitStack() as stack, suppress(UserError):
            refused += 1
            folder = starting_model(str(tiny_model), str(tmp_path / "w.pth"), None, tmp_path / "scratch", stack)
            assert still_good(folder, weights)
            refused -= 1
        assert not any((tmp_path / "scratch").iterdir())
    assert refused > 70
