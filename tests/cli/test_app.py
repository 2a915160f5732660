"""The command line at the user's door: speed, help, and one clear line for every mistake."""

import json
import os
import subprocess
import sys

import pytest

from esplug.config import RunConfig, flag_of
from tests.helpers.cli import HEAVY, errors_of, run_cli
from tests.helpers.timing import start_quickly


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plugins"], ["plugins", "--json"], ["train", "--help"], ["eval", "--help"], ["chat", "--help"]],
)
def test_help_and_listing_are_fast_and_import_nothing_heavy(arguments) -> None:
    code = (
        f"import sys, atexit; sys.argv = ['esplug', *{arguments}]\n"
        f"atexit.register(lambda: print('LOADED', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from esplug.cli.app import main; main()"
    )
    done = start_quickly([sys.executable, "-c", code])
    assert "LOADED []" in done.stderr


def test_plugins_json_names_both_tasks(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "plugins", "--json")
    listed = json.loads(out)
    assert code == 0
    tasks = {p["name"]: p["distribution"] for p in listed["plugins"] if p["kind"] == "task"}
    assert tasks["countdown"] == "esplug-tasks-countdown"
    assert tasks["math"] == "esplug-tasks-math"


@pytest.mark.parametrize("field", list(RunConfig.model_fields))
def test_every_flag_is_in_the_help_and_the_table_of_settings(field, monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run_cli(monkeypatch, capfd, "train", "--help")
    assert flag_of(field) in out
    with open("docs/settings.md", encoding="utf-8") as page:
        assert f"`{flag_of(field)}`" in page.read()


BAD_FLAGS = [
    (["--sigma", "nan"], "--sigma"),
    (["--population-size", "7", "--antithetic"], "--population-size"),
    (["--n-iterations", "1.5"], "--n-iterations"),
    (["--eval-freq", "-2"], "--eval-freq"),
    (["--eval-limit", "0"], "--eval-limit"),
    (["--eval-n-samples", "4"], "--eval-temperature"),
    (["--pass-k", "4"], "--eval-n-samples"),
    (["--batch-size", "0"], "--batch-size"),
    (["--mini-batch-size", "0"], "--mini-batch-size"),
    (["--max-model-len", "1"], "--max-model-len"),
    (["--train-temperature", "-1"], "--train-temperature"),
    (["--stop", ""], "--stop"),
    (["--tag", ""], "--tag"),
    (["--tag", "x" * 65], "at most 64 characters"),
    (["--master-dtype", "int4"], "--master-dtype"),
    (["--n-vllm-engines", "0"], "--n-vllm-engines"),
    (["--n-gpu-per-vllm-engine", "0"], "--n-gpu-per-vllm-engine"),
    (["--gpu-memory-utilization", "2"], "--gpu-memory-utilization"),
    (["--reward-function-timeout", "0"], "--reward-function-timeout"),
    (["--output-directory", " "], "--output-directory"),
    (["--model-name", ""], "--model-name"),
    (["--task", "cuntdown"], "did you mean 'countdown'?"),
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
    code, out, err = run_cli(monkeypatch, capfd, *base, *arguments)
    assert (code, len(errors_of(err))) == (2, 1), err
    assert out == ""  # the error comes first
    assert word in errors_of(err)[0]
    assert "Traceback" not in err
    assert not out_dir.exists()


@pytest.mark.vllm
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_gpu_that_is_not_there_is_the_first_thing_printed(command, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    arguments = [command, "--model-name", str(tiny_model), "--output-directory", str(tmp_path), "--use-gpus", "77"]
    code, out, err = run_cli(monkeypatch, capfd, *arguments, "--max-tokens", "8")
    assert (code, out, len(errors_of(err))) == (2, "", 1), err
    assert "--use-gpus 77" in err
    assert list(tmp_path.iterdir()) == []


USAGE = [
    ("train --lr 1", "No such option: --lr; did you mean '--alpha'?"),
    ("train --model x", "No such option: --model; did you mean '--model-name'?"),
    ("train --model_name x", "No such option: --model_name; did you mean '--model-name'?"),
    ("train --epochs 3", "No such option: --epochs; did you mean '--n-iterations'?"),
    ("train --steps 3", "No such option: --steps; did you mean '--n-iterations'?"),
    ("train --gpus 0", "No such option: --gpus; did you mean '--use-gpus'?"),
    ("eval --lr 1", "No such option: --lr; see `esplug eval --help`"),
    ("eval --zzz", "No such option: --zzz; see `esplug eval --help`"),
    ("--task countdown", "No such option: --task; see `esplug --help`"),
    ("train countdown", "Got unexpected extra argument(s) (countdown); see `esplug train --help`"),
    ("plugins x", "Got unexpected extra argument(s) (x); see `esplug plugins --help`"),
    ("train --task", "Option '--task' requires an argument."),
    ("report", "Missing argument 'RUN...'; see `esplug report --help`"),
    ("export", "Missing argument 'RUN_OR_LOG'; see `esplug export --help`"),
    ("push", "Missing argument 'RUN'; see `esplug push --help`"),
    ("push run", "Missing option '--repo'; see `esplug push --help`"),
    ("chat", "Missing argument 'MODEL_OR_RUN'; see `esplug chat --help`"),
    ("data build", "Missing argument 'name'; see `esplug data build --help`"),
    ("help", "No such command 'help'; see `esplug --help`"),
    ("trian", "No such command 'trian'. Did you mean 'train'?"),
]


@pytest.mark.parametrize(("words", "line"), USAGE, ids=[words for words, _ in USAGE])
def test_a_malformed_command_line_gets_a_suggestion(words, line, monkeypatch, capfd) -> None:
    assert run_cli(monkeypatch, capfd, *words.split()) == (2, "", f"error: {line}\n")


NOT_FOR_EVAL = {
    *("train_dataset", "train_temperature", "train_top_p", "batch_size", "members_per_batch", "eval_freq", "profile"),
    *("save_best_models", "checkpoint_every", "keep_checkpoints", "perturbation", "rank", "momentum", "recipe"),
    *("sigma", "alpha", "population_size", "n_iterations", "antithetic", "reward_shaping", "normalize_utilities"),
    *("sigma_schedule", "sigma_end", "alpha_schedule", "alpha_end"),
    *("early_stopping_patience", "early_stopping_metric", "early_stopping_min_delta"),
}


def test_eval_has_its_own_short_flags_and_none_of_training(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run_cli(monkeypatch, capfd, "eval", "--help")
    words = set(out.replace(",", " ").split())
    for field in RunConfig.model_fields:
        assert (flag_of(field, "eval") in words) == (field not in NOT_FOR_EVAL), field
    short = {"--temperature", "--top-p", "--n-samples", "--pass-k", "--seed", "--max-tokens", "--limit", "--splits"}
    assert short | {"--compare", "--max-reward"} <= words
    assert not any(word.startswith("--eval-") and word != "--eval-dataset" for word in words)


EVAL_MISTAKES = [  # arguments, and what the line says
    (["--splits", "countdown_evil"], ["--splits countdown_evil", "no such split", "countdown_eval"]),
    (["--splits", "countdown_eval,test"], ["--splits test", "no such split"]),
    (["--pass-k", "4"], ["--pass-k 4", "--n-samples is 1"]),
    (["--pass-k", "1,8", "--n-samples", "4", "--temperature", "1"], ["--pass-k 8", "--n-samples is 4"]),
    (["--pass-k", "1,two"], ["--pass-k 'two'", "integer"]),
    (["--n-samples", "4"], ["--n-samples 4", "greedy", "--temperature"]),
    (["--n-samples", "0"], ["--n-samples 0", "1"]),
    (["--temperature", "-1"], ["--temperature -1", "0"]),
    (["--temperature", "warm"], ["--temperature"]),
    (["--top-p", "0"], ["--top-p 0", "greater than 0"]),
    (["--limit", "0"], ["--limit 0", "1"]),
    (["--max-reward", "inf"], ["--max-reward", "finite"]),
    (["--eval-dataset", "{tmp}/lacking.jsonl"], ["lacking.jsonl", "'lacking'", "column 'target'", "context, numbers"]),
    (["--eval-dataset", "{tmp}/none.jsonl"], ["--eval-dataset", "none.jsonl"]),
    (["--checkpoint", "./no/such"], ["--checkpoint ./no/such"]),
    (["--compare", "{tiny}"], ["--compare", "2 arguments"]),
    (["--compare", "{tiny}", "./no/such"], ["--compare ./no/such", "no such folder"]),
    (["--compare", "./no/such", "{tiny}"], ["--compare ./no/such", "no such folder"]),
    (["--compare", "{tiny}", "{tmp}"], ["--compare {tmp}", "config.json"]),
    (["--compare", "{tiny}", "{tiny}", "--checkpoint", "{tiny}"], ["--checkpoint", "--compare"]),
    (["--compare", "{tiny}", "{tiny}", "--splits", "test"], ["--splits test"]),
    (["--compare", "{tiny}", "{tiny}", "--eval-dataset", "{tmp}/lacking.jsonl"], ["column 'target'"]),
    (["--compare", "{tiny}", "{tiny}", "--logging", "consol"], ["console"]),
    (["--compare", "{tiny}", "{tiny}", "--max-tokens", "5000"], ["--max-tokens 5000"]),
    (["--sigma", "1"], ["--sigma"]),
    (["--n-iterations", "1"], ["--n-iterations"]),
    (["--train-dataset", "x"], ["--train-dataset"]),
    (["--eval-temperature", "1"], ["--eval-temperature"]),
    (["--config", "{tmp}/antithetic.toml"], ["--population-size", "even"]),
    (["--config", "{tmp}/many.toml"], ["--n-samples 4", "greedy"]),
    (["--config", "{tmp}/odd.toml"], ["--pass-k '1.5'"]),
    (["--config", "{tmp}/short.toml"], ["unknown setting 'n_samples'", "eval_n_samples"]),
]


@pytest.mark.parametrize(
    ("arguments", "words"), EVAL_MISTAKES, ids=lambda value: " ".join(value) if value[0].startswith("--") else ""
)
def test_a_mistake_in_eval_gets_one_line_and_writes_nothing(
    arguments, words, monkeypatch, capfd, tmp_path, tiny_model
) -> None:
    (tmp_path / "lacking.jsonl").write_text(json.dumps({"context": "x", "numbers": [1]}))
    (tmp_path / "antithetic.toml").write_text("antithetic = true\npopulation_size = 3\n")
    (tmp_path / "many.toml").write_text("eval_n_samples = 4\n")
    (tmp_path / "odd.toml").write_text("pass_k = 1.5\n")
    (tmp_path / "short.toml").write_text("n_samples = 4\n")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("esplug.runs.preparation.Cluster", lambda *_: pytest.fail("Ray was started"))
    arguments, words = ([each.format(tmp=tmp_path, tiny=tiny_model) for each in part] for part in (arguments, words))
    base = ["eval", "--output-directory", str(tmp_path / "out"), "--limit", "4", "--max-tokens", "8"]
    base += [] if "--compare" in arguments else ["--model-name", str(tiny_model)]
    code, out, err = run_cli(monkeypatch, capfd, *base, *arguments)
    assert (code, out, len(errors_of(err))) == (2, "", 1), err
    assert all(word in errors_of(err)[0] for word in words), err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def resolved(monkeypatch, capfd):
    """Return a function from `esplug eval`'s arguments to the configuration it would run with."""
    from esplug.errors import RunError

    seen = []

    def trainer(config, task, command):
        seen.append(config)
        raise RunError("resolved")

    def resolve(*arguments: str) -> RunConfig:
        monkeypatch.setattr("esplug.cli.evaluate.make_trainer", trainer)
        code, _, err = run_cli(monkeypatch, capfd, "eval", *arguments)
        assert (code, errors_of(err)) == (1, ["error: resolved"])
        return seen[-1]

    return resolve


def test_evals_flags(resolved) -> None:
    plain = resolved()
    assert (plain.eval_temperature, plain.eval_n_samples, plain.pass_k, plain.n_iterations) == (0.0, 1, [1], 0)
    flags = "--temperature 0.8 --top-p 0.9 --n-samples 8 --pass-k 8,1,4 --seed 3 --max-tokens 9 --limit 5"
    config = resolved(*flags.split(), "--splits", "a, b", "--max-reward", "-0.5")
    assert (config.eval_temperature, config.eval_top_p, config.eval_n_samples) == (0.8, 0.9, 8)
    assert (config.pass_k, config.seed, config.max_tokens, config.eval_limit) == ([1, 4, 8], 3, 9, 5)
    assert (config.eval_splits, config.max_reward) == (["a", "b"], -0.5)
    assert (config.train_temperature, config.train_top_p) == (0.0, 1.0)


def test_eval_takes_a_file_that_training_takes_too(resolved, tmp_path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "sigma = 0.5\nn-iterations = 7\nbatch_size = 3\ntrain_temperature = 0.7\nsave_best_models = true\n"
        "eval_freq = 2\neval_n_samples = 4\neval-temperature = 0.9\npass_k = [4, 1]\neval_splits = ['x']\n"
    )
    config = resolved("--config", str(file), "--temperature", "0.5")
    assert config.n_iterations == 0
    assert (config.sigma, config.batch_size, config.train_temperature) == (0.5, 3, 0.7)
    assert (config.eval_n_samples, config.eval_temperature, config.pass_k) == (4, 0.5, [1, 4])
    assert config.eval_splits == ["x"]
    assert resolved("--config", str(file), "--pass-k", "2", "--n-samples", "3").pass_k == [1, 2]


def test_a_run_s_own_file_evaluates_alike(resolved, tmp_path) -> None:
    config = resolved("--n-samples", "2", "--temperature", "0.5", "--pass-k", "2", "--limit", "3", "--splits", "a")
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert resolved("--config", str(file)) == config


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
    (line,) = errors_of(err)
    assert code == 2
    assert all(word in line for word in words), line
    assert not out_dir.exists()


def test_a_model_hub_out_of_reach_is_one_line(tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["train", "--model-name", "nobody/no-such", "--output-directory", str(out)]
    command = [sys.executable, "-m", "esplug", *arguments]
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


def test_a_word_that_is_not_one_of_several_is_named_in_one_line(monkeypatch, capfd) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "check", "countdown", "--kind", "tsk")
    assert (code, err) == (2, "error: Invalid value for '--kind': 'tsk' is not one of 'task', 'shaping', 'logger'.\n")
