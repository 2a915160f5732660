"""The seed log is read as it was written, and all damage is detected."""

import hashlib
import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esplug.checkpoints.seed_log import SeedLog, read
from esplug.checkpoints.seed_log_records import Base, Header, Step, movement, weighted_steps, why_unchanged
from esplug.errors import UserError
from esplug.es.members import population

U64 = st.integers(0, 2**64 - 1)
COEFFICIENTS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.builds(
    Header,
    st.builds(Base, st.text(), st.none() | st.text(), U64),
    st.sampled_from(["float32", "model"]),
    U64,
    st.dictionaries(st.text(), JSON, max_size=3),
)
MOMENTA = st.just(0.0) | st.floats(0, 0.99)
UPDATES = st.lists(st.tuples(COEFFICIENTS, st.booleans(), U64, MOMENTA), max_size=5)
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

HEADER = Header(Base("org/model", "0" * 40, 0xABC), "float32", 42, {"sigma": 0.001, "task": "countdown"})


def steps(*updates: tuple[tuple[float, ...], bool, int, float]) -> list[Step]:
    return [Step(number, *update) for number, update in enumerate(updates)]


STEPS = steps(
    ((0.5, -0.25), True, 1, 0.0),
    ((1e-7, 3.0, 0.1), False, 2**64 - 1, 0.9),
    ((-0.0,), False, 7, 0.0),
    ((2.0, 0.5, -1.5), True, 9, 0.3),
)


def write(path: Path, header: Header = HEADER, written: list[Step] = STEPS) -> Path:
    path.unlink(missing_ok=True)
    with SeedLog.create(path, header) as log:
        for step in written:
            log.append(step)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seeds.log"


@QUICK
@given(HEADERS, UPDATES)
def test_a_written_log_is_read_back(path: Path, header: Header, updates: list) -> None:
    expected = steps(*updates)
    assert read(write(path, header, expected)) == (header, expected, False)
    with SeedLog.open(path) as log:
        assert (log.header, log.steps, log.torn) == (header, expected, False)
        log.append(Step(len(expected), (1.5,), False, 3))
    assert read(path).steps == [*expected, Step(len(expected), (1.5,), False, 3)]


@QUICK
@given(UPDATES, st.data())
def test_every_truncation_leaves_whole_iterations_or_is_an_error(
    path: Path, updates: list, data: st.DataObject
) -> None:
    expected = steps(*updates)
    content = write(path, written=expected).read_bytes()
    ends = [len(write(path, written=expected[:n]).read_bytes()) for n in range(len(expected) + 1)]
    kept = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:kept])
    if kept < ends[0]:
        with pytest.raises(UserError, match=r"header is damaged|not a seed log|empty"):
            read(path)
        return
    whole = sum(end <= kept for end in ends[1:])
    assert read(path) == (HEADER, expected[:whole], kept not in ends)
    with SeedLog.open(path) as log:
        assert log.torn == (kept not in ends)
        log.append(Step(whole, (0.5,), True, 5))
    assert read(path) == (HEADER, [*expected[:whole], Step(whole, (0.5,), True, 5)], False)


def damage_is_seen(path: Path, content: bytes, damaged: bytes, last: int) -> None:
    """Check that only damage to the last record, which begins at ``last``, counts as torn by a crash."""
    path.write_bytes(damaged)
    if damaged[:last] == content[:last]:
        assert read(path) == (HEADER, STEPS[:-1], True)
    else:
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            read(path)


def test_every_flipped_byte_is_detected(path: Path) -> None:
    content = write(path).read_bytes()
    last = len(write(path, written=STEPS[:-1]).read_bytes())
    for position in range(len(content)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= mask
            damage_is_seen(path, content, bytes(damaged), last)


@QUICK
@given(st.data())
def test_every_overwritten_stretch_is_detected(path: Path, data: st.DataObject) -> None:
    content = write(path).read_bytes()
    last = len(write(path, written=STEPS[:-1]).read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    fill = data.draw(st.binary(min_size=1, max_size=min(40, len(content) - start)))
    damaged = content[:start] + fill + content[start + len(fill) :]
    if damaged != content:
        damage_is_seen(path, content, damaged, last)


@pytest.mark.parametrize("rest", [b"\0" * 3, b"\0" * 45, bytes(range(40))], ids=["short", "zeros", "noise"])
def test_bytes_after_the_last_record_are_cut_off(path: Path, rest: bytes) -> None:
    content = write(path).read_bytes()
    path.write_bytes(content + rest)
    assert read(path) == (HEADER, STEPS, True)
    SeedLog.open(path).close()
    assert path.read_bytes() == content


def test_more_than_one_record_is_never_dropped(path: Path) -> None:
    """A crash tears one record, so garbage of two records' length is damage."""
    content = write(path).read_bytes()
    begins = len(write(path, written=STEPS[:2]).read_bytes())
    path.write_bytes(content[:begins] + b"\0" * (len(content) - begins))
    with pytest.raises(UserError, match=rf"iteration 2, at byte {begins}, is damaged"):
        read(path)
    SeedLog.open(path).close()
    assert read(path) == (HEADER, STEPS[:2], False)


def test_damage_in_the_middle_is_located(path: Path) -> None:
    content = bytearray(write(path).read_bytes())
    begins = len(write(path, written=STEPS[:1]).read_bytes())
    content[begins + 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"iteration 1, at byte {begins}, is damaged; .*--iteration 1 or less"):
        read(path)
    assert read(path, stop=1) == (HEADER, STEPS[:1], False)
    for number in (1, 2):
        path.write_bytes(content)
        with SeedLog.open(path) as log:
            assert log.damage == f"the record of iteration 1, at byte {begins}, is damaged"
            assert log.copy == path.with_name(f"seeds.log.damaged-{number}")
            assert log.copy.read_bytes() == content
            log.append(STEPS[1])
        assert read(path).steps == STEPS[:2]


def test_records_of_two_runs_do_not_mix(path: Path) -> None:
    header = len(write(path, written=[]).read_bytes())
    content = write(path).read_bytes()
    path.write_bytes(content + content[header:])
    with pytest.raises(UserError, match=r"record of iteration 4, .* is that of iteration 0"):
        read(path)


@pytest.mark.parametrize("iteration", [1, 3, 5])
def test_an_iteration_out_of_order_is_refused(path: Path, iteration: int) -> None:
    write(path, written=STEPS[:2])
    content = path.read_bytes()
    with SeedLog.open(path) as log, pytest.raises(ValueError, match=rf"iteration {iteration} .*next is 2"):
        log.append(Step(iteration, (1.0,), False, 0))
    assert path.read_bytes() == content


def test_every_record_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with SeedLog.create(path, HEADER) as log:
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        for number, step in enumerate(STEPS, 1):
            log.append(step)
            assert len(synced) == number
            assert synced[-1] == path.stat().st_size
            assert read(path).steps == STEPS[:number]


def test_a_record_that_cannot_be_written_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, written=STEPS[:1])
    content = path.read_bytes()

    def full(descriptor: int) -> None:
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    with SeedLog.open(path) as log:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append(STEPS[1])
        assert path.read_bytes() == content
        log.append(STEPS[1])
    assert read(path).steps == STEPS[:2]


def test_a_log_is_not_overwritten(path: Path) -> None:
    content = write(path).read_bytes()
    with pytest.raises(UserError, match=r"seeds.log: exists"):
        SeedLog.create(path, HEADER)
    assert path.read_bytes() == content


def test_the_header_is_readable_json_and_newer_versions_are_named(path: Path) -> None:
    line = write(path, written=[]).read_bytes()
    content = json.loads(line)
    assert content.pop("crc")
    assert content == {
        "format": "esplug-seed-log",
        "version": 3,
        "base": {"name": "org/model", "revision": "0" * 40, "weights_checksum": "0000000000000abc"},
        "master_dtype": "float32",
        "run_seed": 42,
        "low_rank": None,
        "settings": {"sigma": 0.001, "task": "countdown"},
    }
    path.write_bytes(line.replace(b'"version":3', b'"version":4'))
    with pytest.raises(UserError, match=r"version 4, .* reads version 3; upgrade esplug"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'{"format":"esplug-seed-log"' + b"[" * 100_000, "header is damaged"),
        (b'{"format": "other"}\n', "not a seed log"),
        (b"[1]\n", "not a seed log"),
        (b"\xff" * 100, "not a seed log"),
        (b'{"format":"esplug-seed-log","vers', "header is damaged"),
        (b'{"format":"esplug-seed-log","version":1}\n', "header is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_unreadable_files_are_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seeds.log: cannot be read \(No such file"):
        read(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read(tmp_path)


def test_values_out_of_range_are_refused(path: Path) -> None:
    for coefficients in [(), (math.nan,), (1.0, math.inf), (1e39,)]:
        with pytest.raises(ValueError, match="coefficient"):
            Step(0, coefficients, False, 0)
    for momentum in (-0.1, 0.991, math.nan):
        with pytest.raises(ValueError, match="momentum"):
            Step(0, (1.0,), False, 0, momentum)
    for number in (-1, 2**64):
        with pytest.raises(ValueError, match="iteration"):
            Step(number, (1.0,), False, 0)
        with pytest.raises(ValueError, match="checksum"):
            Step(0, (1.0,), False, number)
        with pytest.raises(ValueError, match="checksum"):
            Base("m", None, number)
        with pytest.raises(ValueError, match="run seed"):
            Header(HEADER.base, "float32", number)
    with pytest.raises(ValueError, match="master dtype"):
        Header(HEADER.base, "int8", 0)  # type: ignore[arg-type]
    for value in (math.nan, object()):
        with pytest.raises(ValueError, match="JSON"):
            SeedLog.create(path, Header(HEADER.base, "float32", 0, {"x": value}))
        assert not path.exists()


def test_coefficients_are_float32_and_signs_of_zero_stay() -> None:
    step = Step(0, (0.1, -0.0), False, 0)
    assert step.coefficients[0] == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert math.copysign(1, step.coefficients[1]) == -1
    assert movement([step], 1)[1] == list(step.coefficients)
    assert movement([Step(0, (0.0, -0.0), False, 0)], 1) == ([], [])


@pytest.mark.parametrize("antithetic", [False, True])
def test_seeds_are_the_populations(antithetic: bool) -> None:
    members = population(42, 3, 4, antithetic=antithetic)
    assert Step(3, (1.0,) * 4, antithetic, 0).seeds(42) == [member.seed for member in members]


def test_500_iterations_of_30_members_take_77_kilobytes(path: Path) -> None:
    write(path, written=[Step(i, (0.1,) * 30, False, 0) for i in range(500)])
    assert path.stat().st_size - len(write(path, written=[]).read_bytes()) == 500 * (33 + 4 * 30) == 76_500


@given(st.lists(st.tuples(COEFFICIENTS, st.booleans(), st.just(0), st.just(0.0)), min_size=1, max_size=4))
def test_without_momentum_an_update_is_its_own_members(updates: list) -> None:
    made = steps(*updates)
    seeds, values = movement(made, 3)
    assert (seeds, values) == (
        (made[-1].seeds(3), list(made[-1].coefficients)) if any(made[-1].coefficients) else ([], [])
    )


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_momentum_from_seeds_is_the_velocity_but_for_its_tail(values: list[float], momentum: float) -> None:
    made = steps(*(((value,), False, 0, momentum) for value in values))
    velocity = 0.0
    for done, value in enumerate(values, 1):
        velocity = momentum * velocity + value
        seeds, moved_by = movement(made[:done], 3)
        assert sum(moved_by) == pytest.approx(velocity, abs=0.01 / (1 - momentum) + 1e-5)
        assert all(value == struct.unpack("<f", struct.pack("<f", value))[0] for value in moved_by)
        if seeds:
            assert seeds == [step.seeds(3)[0] for step in made[:done][::-1]][: len(seeds)]
            assert len(seeds) == done or momentum ** len(seeds) < 0.01


def test_momentum_goes_on_where_all_rewards_are_equal_and_ends() -> None:
    made = steps(((1.0, 0.5), True, 0, 0.5), *(((0.0, 0.0), True, 0, 0.5) for _ in range(9)))
    moved = [movement(made[:done], 1)[1] for done in range(1, 11)]
    assert [values[-2:] for values in moved[:7]] == [[2.0**-age, 2.0 ** -(age + 1)] for age in range(7)]
    assert moved[7:] == [[], [], []]
    assert [step.iteration for step, _ in weighted_steps(made[:3])] == [2, 1, 0]


def test_each_step_has_its_own_momentum() -> None:
    made = steps(((1.0,), False, 0, 0.9), ((2.0,), False, 0, 0.0), ((4.0,), False, 0, 0.25))
    assert [movement(made[:done], 1)[1] for done in (1, 2, 3)] == [[1.0], [2.0], [4.0, 0.5, 0.0625]]


@pytest.mark.parametrize("rank", [1, 64])
def test_the_rank_of_the_noise_is_kept(path: Path, rank: int) -> None:
    SeedLog.create(path, replace(HEADER, low_rank=rank)).close()
    assert read(path).header.low_rank == rank


@pytest.mark.parametrize("rank", [0, 65, -1, "1", [1]])
def test_an_invalid_rank_is_damage(path: Path, rank: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        replace(HEADER, low_rank=rank)
    line = json.loads(write(path, written=[]).read_bytes())
    del line["crc"]
    text = json.dumps(line | {"low_rank": rank}, separators=(",", ":"))[:-1].encode()
    path.write_bytes(text + f',"crc":"{hashlib.blake2b(text, digest_size=8).hexdigest()}"}}\n'.encode())
    with pytest.raises(UserError, match="header is damaged"):
        read(path)


def test_a_log_of_version_1_is_read_and_continued(path: Path) -> None:
    line = json.loads(write(path, written=[]).read_bytes())
    del line["crc"], line["low_rank"]
    text = json.dumps(line | {"version": 1}, separators=(",", ":"))[:-1].encode()
    crc = hashlib.blake2b(text, digest_size=8).hexdigest()
    fixed = struct.pack("<IQQBI2f", 29, 0, 5, 1, 2, 0.5, -0.25)
    path.write_bytes(text + f',"crc":"{crc}"}}\n'.encode() + fixed + hashlib.blake2b(fixed, digest_size=8).digest())
    with SeedLog.open(path) as log:
        log.append(Step(1, (1.0,), False, 6))
    assert read(path) == (HEADER, [Step(0, (0.5, -0.25), True, 5), Step(1, (1.0,), False, 6)], False)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([], ""),
        ([((0.0, 0.0), 7), ((0.0, 0.0), 7)], "all members earned the same in every iteration; try a reward that"),
        ([((0.0, 0.0), 7), ((1e-30, -1e-30), 7)], "every update was too small to change a weight; try a larger alpha"),
        ([((0.0, 0.0), 7), ((0.5, -0.5), 8)], ""),
        ([((0.5, -0.5), 8), ((0.0, 0.0), 8)], ""),
    ],
)
def test_the_reason_why_weights_did_not_change(steps, reason) -> None:
    made = [Step(number, coefficients, False, checksum) for number, (coefficients, checksum) in enumerate(steps)]
    found = why_unchanged(7, made)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
