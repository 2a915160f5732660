"""The command line at the user's door: speed, help, and one clear line for every mistake."""

import json
import os
import subprocess
import sys
import time

import pytest

from esplug import cli
from esplug.config import RunConfig, flag_of

HEAVY = ("torch", "vllm", "ray", "numba", "wandb", "transformers", "datasets")


def run_cli(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process and return exit status, output and errors."""
    monkeypatch.setattr(sys, "argv", ["esplug", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capfd.readouterr()
    return done.value.code, out, err


def slowness() -> float:
    """How much slower than usual this machine is now, by a bare Python's start (usually under 30 ms); at least 1."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "import json, re"], check=True)
        seconds.append(time.perf_counter() - started)
    return max(1.0, min(seconds) / 0.03)


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["train", "--help"]])
def test_help_and_listing_are_fast_and_import_nothing_heavy(arguments) -> None:
    code = (
        f"import sys, atexit; sys.argv = ['esplug', *{arguments}]\n"
        f"atexit.register(lambda: print('LOADED', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from esplug.cli import main; main()"
    )
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        assert "LOADED []" in done.stderr
    assert min(seconds) < 0.4 * slowness()


def test_plugins_json_names_both_tasks(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "plugins", "--json")
    listed = json.loads(out)
    assert code == 0
    tasks = {p["name"]: p["distribution"] for p in listed["plugins"] if p["kind"] == "task"}
    assert tasks["countdown"] == "esplug-tasks-countdown"
    assert tasks["math"] == "esplug-tasks-math"


@pytest.mark.parametrize("field", list(RunConfig.model_fields))
def test_every_flag_is_in_the_help_and_the_readme(field, monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run_cli(monkeypatch, capfd, "train", "--help")
    assert flag_of(field) in out
    with open("README.md", encoding="utf-8") as readme:
        assert f"`{flag_of(field)}" in readme.read()


BAD_FLAGS = [
    (["--sigma", "0"], "--sigma"),
    (["--sigma", "nan"], "--sigma"),
    (["--sigma", "big"], "--sigma"),
    (["--alpha", "-1"], "--alpha"),
    (["--population-size", "1"], "--population-size"),
    (["--population-size", "7", "--antithetic"], "--population-size"),
    (["--n-iterations", "-1"], "--n-iterations"),
    (["--n-iterations", "1.5"], "--n-iterations"),
    (["--eval-freq", "-2"], "--eval-freq"),
    (["--eval-limit", "0"], "--eval-limit"),
    (["--batch-size", "0"], "--batch-size"),
    (["--mini-batch-size", "0"], "--mini-batch-size"),
    (["--max-tokens", "0"], "--max-tokens"),
    (["--max-model-len", "1"], "--max-model-len"),
    (["--train-temperature", "-1"], "--train-temperature"),
    (["--train-top-p", "0"], "--train-top-p"),
    (["--stop", ""], "--stop"),
    (["--dtype", "int4"], "--dtype"),
    (["--master-dtype", "int4"], "--master-dtype"),
    (["--seed", "-1"], "--seed"),
    (["--n-vllm-engines", "0"], "--n-vllm-engines"),
    (["--n-gpu-per-vllm-engine", "0"], "--n-gpu-per-vllm-engine"),
    (["--use-gpus", "first"], "--use-gpus"),
    (["--gpu-memory-utilization", "2"], "--gpu-memory-utilization"),
    (["--reward-function-timeout", "0"], "--reward-function-timeout"),
    (["--experiment-name", "../up"], "--experiment-name"),
    (["--output-directory", " "], "--output-directory"),
    (["--model-name", ""], "--model-name"),
    (["--task", "chess"], "esplug-tasks-chess"),
    (["--task-option", "shots"], "key=value"),
    (["--task-option", "shorts=1"], "shots"),
    (["--task-option", "shots=many"], "shots"),
    (["--task-option", "shots=99"], "shots"),
    (["--reward-shaping", "z-score"], "z-scores"),
    (["--logging", "consol"], "console"),
    (["--config", "no/such.toml"], "no/such.toml"),
    (["--sgima", "1"], "--sgima"),
    (["--model-name", "./no/such/model"], "./no/such/model"),
    (["--checkpoint", "./no/such/checkpoint"], "--checkpoint ./no/such/checkpoint"),
    (["--train-dataset", "./no/such"], "--train-dataset"),
    (["--eval-dataset", "./no/such"], "--eval-dataset"),
    (["--ray-address", "127.0.0.1:1"], "--ray-address"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), BAD_FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_bad_flag_gets_one_line_and_writes_nothing(arguments, word, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    out_dir = tmp_path / "out"
    base = ["train", "--model-name", str(tiny_model), "--output-directory", str(out_dir), "--max-tokens", "8"]
    code, _, err = run_cli(monkeypatch, capfd, *base, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (2, 1), err
    assert word in lines[0]
    assert "Traceback" not in err
    assert not out_dir.exists()


def _saved_dict(folder, splits):
    import datasets

    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder)


ROW = {"context": "Make 3 of 1, 2.\n<think>", "numbers": [1, 2], "target": 3}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", "", ["no rows"]),
        ("rows.jsonl", "{broken", ["line 1"]),
        ("rows.jsonl", "[1, 2]\n", ["row 1", "columns"]),
        ("rows.json", '{"a": 1}', ["list of rows"]),
        ("rows.jsonl", json.dumps({"context": "x", "numbers": [1]}), ["target", "columns found: context, numbers"]),
        ("rows.jsonl", json.dumps(ROW | {"numbers": "one"}), ["numbers"]),
        ("rows.csv", "context,numbers\nx,[1]\n", ["target", "columns found"]),
        ("rows.parquet", "not parquet", ["cannot be read"]),
        ("rows.xml", "<rows/>", [".jsonl"]),
        ("folder", None, ["dataset_dict.json"]),
        ("torn", "torn", ["cannot be read"]),
    ],
)
def test_a_bad_data_set_gets_one_line(name, content, words, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content == "torn":
        _saved_dict(path, {"train": [ROW]})
        next(path.glob("train/*.arrow")).write_bytes(b"torn")
    else:
        path.write_text(content)
    out_dir = tmp_path / "out"
    arguments = ["train", "--model-name", str(tiny_model), "--output-directory", str(out_dir)]
    code, _, err = run_cli(monkeypatch, capfd, *arguments, "--max-tokens", "8", "--train-dataset", str(path))
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert all(word in line for word in words), line
    assert not out_dir.exists()


def test_a_model_hub_out_of_reach_is_one_line(tmp_path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "esplug",
        "train",
        "--model-name",
        "nobody/no-such",
        "--output-directory",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "nobody/no-such" in done.stderr
    assert not out.exists()


def test_no_arguments_show_the_help(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd)
    assert code == 2
    assert "train" in out


def test_version(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "--version")
    assert (code, out.split()[0]) == (0, "esplug")
