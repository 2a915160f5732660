"""Every option with every odd value: refused in one line that names it, or accepted for a reason given here."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from esplug.cli.evaluate import _TRAINING_ONLY
from esplug.config import RunConfig, flag_of, make_config, read_toml
from esplug.errors import RunError, UserError
from esplug.planning.placement import Node, Resources
from esplug.utils.cores import GIB
from tests.helpers.amount import amount
from tests.helpers.cli import run_cli
from tests.helpers.timing import within

VALUES = {
    "zero": "0",
    "minus one": "-1",
    "nan": "nan",
    "inf": "inf",
    "1e308": "1e308",
    "10**30": str(10**30),
    "empty": "",
    "abc": "abc",
    "blank": "   ",
    "100 kB": "x" * 100_000,
    "arabic 3": "٣",
    "two lines": "a\nb",
    "not UTF-8": "\udcff",
}
MOST_SECONDS = 5
EVERY = amount(usual=4, whole=1)  # each field meets every fourth value, and each value every fourth field
COMMANDS = {"train": RunConfig.model_fields, "eval": [f for f in RunConfig.model_fields if f not in _TRAINING_ONLY]}

SWITCH = {"zero": "means off"}
ZERO = {"zero": "none of them is a sensible wish"}
HUGE = dict.fromkeys(("zero", "minus one", "1e308", "10**30"), "any finite reward may be asked for")
NAME = dict.fromkeys(("zero", "minus one", "nan", "inf", "1e308", "10**30", "abc", "arabic 3"), "may be a name")
NOTHING = dict.fromkeys(("empty", "blank"), "names nothing, like an option left out")
TEXT = {value: "any text may end an answer" for value in VALUES if value not in ("empty", "not UTF-8")}
ACCEPTED: dict[str, dict[str, str]] = {  # all other values are refused
    **dict.fromkeys(("train_dataset", "eval_dataset", "model_name", "checkpoint", "reward_shaping"), NAME),
    **dict.fromkeys(("output_directory", "wandb_project", "engine_resource"), NAME),
    **dict.fromkeys(("logging", "eval_splits"), NAME | NOTHING),
    **dict.fromkeys(("n_iterations", "seed", "max_restarts", "reward_workers", "eval_freq", "checkpoint_every"), ZERO),
    **dict.fromkeys(("early_stopping_patience", "early_stopping_min_delta"), ZERO),
    **dict.fromkeys(("momentum", "profile"), ZERO),
    **dict.fromkeys(("train_temperature", "eval_temperature"), ZERO),
    "experiment_name": {value: reason for value, reason in NAME.items() if value != "minus one"},
    "max_reward": HUGE,
    "pass_k": NOTHING,
    "use_gpus": {"zero": "the first GPU"},
    **{name: SWITCH for name, field in RunConfig.model_fields.items() if field.annotation is bool},
    "stop": TEXT,
    "system_prompt": {value: "any text may be a system message" for value in TEXT if value != "blank"},
    "notes": {value: "any text may be a note" for value in VALUES if value != "not UTF-8"},
    "tags": NAME,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch) -> None:
    for module in ("checkpoints.base_model", "data.hub_datasets"):
        monkeypatch.setattr(f"esplug.{module}.hub_revision", lambda *_, **__: None)


@pytest.fixture
def stop_before_data(monkeypatch) -> None:
    def trainer(*_: object) -> None:
        raise RunError("resolved")

    for command in ("train", "evaluate"):
        monkeypatch.setattr(f"esplug.cli.{command}.make_trainer", trainer)


def verdict(monkeypatch, capfd, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the one error line; fail if that takes too long."""
    with within(MOST_SECONDS):
        code, _, err = run_cli(monkeypatch, capfd, *arguments)
    assert err.startswith("error: "), err
    assert len(err.splitlines()) == 1, err
    return code, err


def some_values(command: str, field: str) -> list[str]:
    """Return the names of the values to try."""
    return list(VALUES)[list(COMMANDS[command]).index(field) % EVERY :: EVERY]


@pytest.mark.more
@pytest.mark.parametrize(
    ("command", "field"),
    [
        pytest.param(
            command, field, marks=pytest.mark.fault("odd value of an option", len(some_values(command, field)))
        )
        for command in COMMANDS
        for field in COMMANDS[command]
    ],
)
def test_every_option_with_every_odd_value(command, field, stop_before_data, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    flag = flag_of(field, command)
    for name in some_values(command, field):
        code, line = verdict(monkeypatch, capfd, command, f"{flag}={VALUES[name]}")
        if name in ACCEPTED.get(field, {}):
            assert (code, line) == (1, "error: resolved\n"), name
        else:
            assert code == 2, (name, line[:200])
            assert flag in line or f"no {field} " in line, (name, line[:200])
    assert not list(tmp_path.iterdir())


def test_all_values_of_the_table_are_tried() -> None:
    assert all(reasons.keys() <= VALUES.keys() for reasons in ACCEPTED.values())
    assert ACCEPTED.keys() <= RunConfig.model_fields.keys()


def outcome_of(settings: dict[str, Any]) -> RunConfig | str:
    """Return the configuration, or the error line."""
    try:
        return make_config(settings)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("field", RunConfig.model_fields)
def test_a_refusal_of_a_number_gives_its_range(field) -> None:
    info = RunConfig.model_fields[field]
    for value in (float("nan"), float("-inf"), 10**30, -1, "abc", "x" * 100_000):
        text = outcome_of({field: value})
        if isinstance(text, str):
            assert text.startswith(flag_of(field)), text
            assert len(text) < 500
            for part in info.metadata:
                for limit in ("gt", "ge", "le"):
                    assert not hasattr(part, limit) or str(getattr(part, limit)) in text, text


# --- files of settings -------------------------------------------------------------------------------------

TOML_VALUES = ["true", "[1]", "[true]", "{a = 1}", "1979-05-27", '"\\u0000"', '"a\\nb"', '["\\u0000"]', "-0.0", "[]"]


@pytest.mark.fault("odd value of an option", len(TOML_VALUES))
@pytest.mark.parametrize("field", RunConfig.model_fields)
def test_every_key_of_a_file_with_every_odd_value(field, tmp_path) -> None:
    file = tmp_path / "settings.toml"
    for value in TOML_VALUES:
        file.write_text(f"{field} = {value}\n")
        outcome = outcome_of(read_toml(str(file)))
        if isinstance(outcome, str):
            assert outcome.startswith(f"{flag_of(field)} "), outcome
            assert len(outcome.splitlines()) == 1
        else:
            file.write_text(outcome.to_toml(), encoding="utf-8")
            assert make_config(read_toml(str(file))) == outcome


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        *map(
            _written, [b"\x00", b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"sigma", b"= 1", b"[a"]
        ),
        *map(_written, [b"sigma = 1\nsigma = 1", b'"' + b"x" * 9000 + b'" = 1', b'"" = 1', b"a.b = 1", b'"a\\nb" = 1']),
        *(Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)),
        lambda path: None,
    ],
)
def test_a_malformed_settings_file(make, stop_before_data, monkeypatch, capfd, tmp_path) -> None:
    make(tmp_path / "c.toml")
    code, line = verdict(monkeypatch, capfd, "train", "--config", str(tmp_path / "c.toml"))
    assert code == 2
    assert "c.toml" in line or "unknown setting" in line
    assert len(line) < 600


@pytest.mark.parametrize("name", ["", "   ", "x" * 100_000])
def test_an_odd_name_of_a_settings_file(name, stop_before_data, monkeypatch, capfd) -> None:
    code, line = verdict(monkeypatch, capfd, "train", f"--config={name}")
    assert (code, "--config" in line) == (2, True) or not name


# --- values checked later, but before an engine starts --------------------------------------------------

NAMES = [VALUES[value] for value in NAME]
LATER = [
    *((flag, value, flag) for flag in ("--model-name", "--checkpoint", "--eval-dataset") for value in NAMES),
    *(("--splits", value, f"--splits {value}: no such split") for value in NAMES),
    *(("--logging", value, "no logger") for value in NAMES),
    ("--max-tokens", "1024", "the model's length is 1024"),
    ("--max-tokens", "1000000000", "--max-tokens 1000000000"),
    ("--max-model-len", "1025", "the model's own length is 1024"),
    ("--n-vllm-engines", "1000000", "--n-vllm-engines 1000000"),
    ("--n-gpu-per-vllm-engine", "1000000", "--n-gpu-per-vllm-engine 1000000"),
    ("--n-gpu-per-vllm-engine", "1000000000", "but there are 2 CPU cores"),
    ("--use-gpus", "0", "--use-gpus 0: no usable GPU"),
    ("--use-gpus", "0,1,9999", "--use-gpus"),
    ("--output-directory", "{tmp}/file", "--output-directory"),
    ("--output-directory", "{tmp}/file/inside", "--output-directory"),
    ("--output-directory", "/proc/here", "--output-directory"),
    ("--output-directory", "/dev/null/here", "--output-directory"),
    ("--experiment-name", "taken", "--experiment-name taken"),
]


@pytest.fixture
def small_machine(monkeypatch, tmp_path) -> Iterator[None]:
    """Give the machine two cores and no GPU; fail the test if an engine starts."""

    class Cluster:
        def __init__(self, address: str | None, use_gpus: str | None) -> None: ...

        def resources(self, needed: str | None = None) -> Resources:
            return Resources((Node(gpus=0, cores=2, memory=16 * GIB),))

        def close(self) -> None: ...

    class Graders:
        name = "the reward"

        def __init__(self, *_: object, **__: object) -> None: ...

        def begin(self) -> None: ...

        def ready(self) -> None: ...

        def submit(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(result=lambda: [SimpleNamespace(failed=False)])

        def close(self) -> None: ...

    monkeypatch.setattr("esplug.runs.preparation.Cluster", Cluster)
    monkeypatch.setattr("esplug.runs.preparation.RewardPool", Graders)
    trainer = "esplug.trainer.EvolutionStrategiesTrainer"
    monkeypatch.setattr(f"{trainer}.launch_engines", lambda _: pytest.fail("engines were started"))
    (tmp_path / "rows.jsonl").write_text('{"context": "x", "numbers": [1], "target": 1}\n')
    (tmp_path / "file").touch()
    (tmp_path / "out" / "taken").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    yield
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / "taken"]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("flag", sorted({flag for flag, _, _ in LATER}))
def test_values_that_do_not_fit_the_model_machine_or_disk(
    flag, small_machine, tiny_model, monkeypatch, capfd, tmp_path
) -> None:
    base = ["eval", "--model-name", str(tiny_model), "--eval-dataset", "rows.jsonl", "--output-directory", "out"]
    for value, word in [(value, word) for each, value, word in LATER if each == flag]:
        given = f"{flag}={value.format(tmp=tmp_path)}"
        code, line = verdict(monkeypatch, capfd, *base, "--max-tokens=8", "--logging=none", given)
        assert (code, word in line) == (2, True), line


@pytest.mark.parametrize("value", NAMES)
def test_training_checks_its_own_options_too(value, small_machine, tiny_model, monkeypatch, capfd) -> None:
    base = ["train", "--model-name", str(tiny_model), "--output-directory", "out", "--max-tokens=8", "--logging=none"]
    base += ["--eval-dataset", "rows.jsonl"]
    code, line = verdict(monkeypatch, capfd, *base, f"--train-dataset={value}")
    assert (code, f"--train-dataset {value}" in line) == (2, True), line
    code, line = verdict(monkeypatch, capfd, *base, "--train-dataset=rows.jsonl", f"--reward-shaping={value}")
    assert (code, f"no shaping {value!r}" in line) == (2, True), line


@pytest.mark.parametrize(
    "name",
    ["a/b", "/a", "..", ".", "a/..", "a/", "x" * 201, "é" * 101, "x" * 300, "-x", "--sigma", "a\nb", "a\0b", "", " "],
)
def test_an_experiment_name_that_is_no_folder_name(name) -> None:
    with pytest.raises(UserError, match=r"^--experiment-name "):
        make_config({"experiment_name": name})


def test_a_name_made_from_a_long_model_name_fits_the_file_system(tmp_path) -> None:
    config = make_config({"model_name": f"./{'模' * 80}"}, {"task": "t" * 90})
    (tmp_path / config.run_name).mkdir()
    assert len(config.run_name.encode()) <= 180


@pytest.mark.parametrize(
    "gpus", ["-1", "0,", ",", "0,0", "0;1", "1.0", "٣", "²", "0x1", "9" * 5000, "none,0", "cuda", "0 1"]
)
def test_an_odd_list_of_gpus(gpus) -> None:
    with pytest.raises(UserError, match=r"^--use-gpus "):
        make_config({"use_gpus": gpus})


@pytest.mark.parametrize("task", ["countdown", "math"])
@pytest.mark.parametrize("value", VALUES)
def test_options_of_a_task(task, value, stop_before_data, monkeypatch, capfd) -> None:
    fitting = {(task, "zero", "shots"), (task, "arabic 3", "shots")}  # int() accepts digits of every script
    for option in {"countdown": ["shots"], "math": ["shots", "template"]}[task]:
        arguments = ["eval", "--task", task, f"--task-option={option}={VALUES[value]}"]
        code, line = verdict(monkeypatch, capfd, *arguments)
        if (task, value, option) in fitting:
            assert (code, line) == (1, "error: resolved\n")
        else:
            assert (code, option in line or "--task-option" in line) == (2, True), line[:300]
    for given in (VALUES[value], f"={VALUES[value]}", f" =  {VALUES[value]}", f"no_such={VALUES[value]}"):
        code, line = verdict(monkeypatch, capfd, "eval", "--task", task, f"--task-option={given}")
        assert (code, "--task-option" in line or "'no_such'" in line) == (2, True), line[:300]


# --- the other commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
def test_export(value, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    given = VALUES[value]
    (tmp_path / "taken").touch()
    for option in ("--iteration", "--dtype") if value != "two lines" else ("--iteration",):
        code, line = verdict(monkeypatch, capfd, "export", "no.log", "--out=out", f"{option}={given}")
        fits = option == "--iteration" and value in ("zero", "10**30")  # the log limits the number
        assert (code, "no.log" in line if fits else option in line) == (2, True), line[:300]
    if "\udcff" not in given:
        code, line = verdict(monkeypatch, capfd, "export", "no.log", "--out=taken")
        assert (code, "--out taken: exists" in line) == (2, True), line
    if value not in ("100 kB", "two lines"):
        code, line = verdict(monkeypatch, capfd, "export", "--out=out", "--", given)
        assert code == 2, line
    assert [*tmp_path.iterdir()] == [tmp_path / "taken"]


@pytest.mark.parametrize("value", VALUES)
def test_data(value, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    given = VALUES[value]
    code, line = verdict(monkeypatch, capfd, "data", "build", "--", given)
    assert (code, "no data set" in line) == (2, True), line[:300]
    code, line = verdict(monkeypatch, capfd, "data", "build", "math", f"--source={given}")
    assert (code, "--source" in line) == (2, True), line[:300]
    no_folder = value in ("empty", "blank", "100 kB", "two lines")
    code, out, err = run_cli(monkeypatch, capfd, "data", "list", f"--out={given}")
    assert (code, "--out" in err) == ((2, True) if no_folder else (0, False))
    assert bool(out) != no_folder
    if no_folder:
        code, line = verdict(monkeypatch, capfd, "data", "build", "countdown", f"--out={given}")
        assert (code, "--out" in line) == (2, True), line[:300]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/inside", "/dev/null", "/proc/here"])
def test_data_sets_are_written_only_to_folders(place, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, line = verdict(monkeypatch, capfd, "data", "build", "math_small", "--out", place)
    assert (code, "--out" in line) == (2, True), line
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


@pytest.mark.parametrize("value", VALUES)
def test_plugins_takes_no_arguments(value, monkeypatch, capfd) -> None:
    for arguments in (["--", VALUES[value]], *([] if value in SWITCH else [[f"--json={VALUES[value]}"]])):
        assert verdict(monkeypatch, capfd, "plugins", *arguments)[0] == 2


def test_every_choice_is_named() -> None:
    for field in ("dtype", "master_dtype", "master_device"):
        with pytest.raises(UserError) as caught:
            make_config({field: "int4"})
        assert all(choice in str(caught.value) for choice in get_args(RunConfig.model_fields[field].annotation))


@pytest.mark.parametrize("arguments", [["--sigma", "nan"], ["--seed", "-1"], ["--model-name", "./abc"]])
def test_the_refusal_is_quick(arguments, tmp_path) -> None:
    command: list[Any] = [sys.executable, "-m", "esplug", "train", *arguments, "--output-directory", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * MOST_SECONDS)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert arguments[0] in done.stderr
    assert not (tmp_path / "out").exists()
