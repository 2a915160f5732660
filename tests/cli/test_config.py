"""`esplug config`: every setting with where it comes from, and a schema that editors take."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from esplug.config import RunConfig, make_config, read_toml
from tests.helpers.cli import errors_of, run_cli


def shown(monkeypatch, capfd, *arguments: str) -> tuple[str, dict[str, str]]:
    """Return what `esplug config show` prints, and where each setting comes from by its own word."""
    code, out, err = run_cli(monkeypatch, capfd, "config", "show", *arguments)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line and not line.startswith("[")]
    return out, {line.removeprefix("# ").split()[0]: line.rpartition(" # ")[2].strip() for line in lines}


def test_each_setting_says_where_it_comes_from(monkeypatch, capfd, tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '"$schema" = "esplug.json"\nbatch-size = 7\nmax_tokens = 9\nrecipe = "fast"\n[task_options]\nshots = 1\n'
        '[chat_template_options]\nenable_thinking = true\nmode = "true"\n'
    )
    flags = ["--max-tokens", "8", "--task-option", "level=easy", "--stop", 'a\n", ', "--stop", "b"]
    flags += ["--chat-template-option", "enable_thinking=false", "--chat-template-option", 'words=["a", "b"]']
    out, origins = shown(monkeypatch, capfd, "--config", str(file), *flags)
    tables = {"task_options", "chat_template_options"}
    options = {"shots", "level", "think_words", "enable_thinking", "mode", "words"}
    assert origins.keys() == (RunConfig.model_fields.keys() - tables) | options
    for name, origin in {
        "batch_size": "file",
        "max_tokens": "flag",
        "stop": "flag",
        "recipe": "file",
        "alpha_schedule": "recipe fast",
        "alpha": "recipe fast",
        "sigma": "default",
        "shots": "file",
        "level": "flag",
        "enable_thinking": "flag",
        "mode": "file",
        "words": "flag",
        "checkpoint": "not set: the base model's",
        "profile": "not set",
    }.items():
        assert origins[name] == origin, name
    assert tomllib.loads(out)["stop"] == ['a\n", ', "b"]
    wanted = {"enable_thinking": False, "mode": "true", "words": ["a", "b"]}
    assert tomllib.loads(out)["chat_template_options"] == wanted


def test_the_tasks_own_recommendations_are_the_tasks(monkeypatch, capfd) -> None:
    _, origins = shown(monkeypatch, capfd, "--task", "countdown")
    assert origins["stop"] == "task"


def test_what_is_shown_is_a_file_that_means_the_same(monkeypatch, capfd, tmp_path) -> None:
    flags = ["--perturbation", "low-rank", "--pass-k", "1,4", "--eval-n-samples", "4", "--eval-temperature", "0.5"]
    out, _ = shown(monkeypatch, capfd, *flags)
    file = tmp_path / "shown.toml"
    file.write_text(out)
    again, origins = shown(monkeypatch, capfd, "--config", str(file))
    assert tomllib.loads(again) == tomllib.loads(out)
    assert origins["perturbation"] == "file"
    assert make_config(read_toml(str(file))).low_rank == 1


def test_a_resumed_runs_settings_are_the_runs(monkeypatch, capfd, tmp_path) -> None:
    (tmp_path / "config.toml").write_text(make_config({"max_tokens": 5, "output_directory": str(tmp_path)}).to_toml())
    _, origins = shown(monkeypatch, capfd, "--resume", str(tmp_path), "--n-iterations", "999")
    assert (origins["max_tokens"], origins["n_iterations"]) == ("run", "flag")


@pytest.fixture
def schema(monkeypatch, capfd):
    """Return a function from arguments to the schema."""

    def get(*arguments: str) -> dict:
        code, out, _ = run_cli(monkeypatch, capfd, "config", "schema", *arguments)
        assert code == 0
        return json.loads(out)

    return get


def test_the_schema_takes_what_the_program_takes(schema) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(validator.schema)
    with open("examples/countdown_cpu.toml", "rb") as file:
        validator.validate(tomllib.load(file))
    validator.validate(tomllib.loads(make_config({"stop": ["a"], "use_gpus": "0,1"}).to_toml()))
    validator.validate({"$schema": "x", "logging": "console,jsonl", "pass_k": 4, "use_gpus": [0, 1]})
    for wrong in ({"populaton_size": 4}, {"recipe": "fst"}, {"sigma": 0}, {"n_iterations": 1.5}, {"stop": "x"}):
        assert not validator.is_valid(wrong), wrong


def test_the_file_in_the_docs_is_valid(schema) -> None:
    page = Path("docs/configuration.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    settings = tomllib.loads(text)
    assert make_config(settings).recipe == "fast"
    jsonschema.validate(settings, schema("--task", "countdown"))


def test_the_schema_of_a_task_has_its_options(schema) -> None:
    validator = jsonschema.Draft202012Validator(schema("--task", "countdown"))
    validator.validate({"task_options": {"shots": 1, "level": "easy"}})
    for wrong in ({"shorts": 1}, {"shots": "one"}):
        assert not validator.is_valid({"task_options": wrong})
    assert jsonschema.Draft202012Validator(schema()).is_valid({"task_options": {"anything": 1}})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "show", "--recipe", "fst"], ["--recipe 'fst'", "did you mean 'fast'?"]),
        (["config", "show", "--populaton-size", "4"], ["--populaton-size", "did you mean '--population-size'?"]),
        (["config", "shw"], ["shw", "show"]),
        (["config", "show", "--config", "{tmp}/x.toml"], ["populaton_size", "did you mean 'population_size'?"]),
        (["config", "schema", "--task", "countdwn"], ["did you mean 'countdown'?"]),
        (["train", "--no-probe"], ["--dry-run"]),
    ],
)
def test_the_nearest_name_is_in_the_line(arguments, words, monkeypatch, capfd, tmp_path) -> None:
    (tmp_path / "x.toml").write_text("populaton_size = 4\n")
    code, _, err = run_cli(monkeypatch, capfd, *(each.format(tmp=tmp_path) for each in arguments))
    (line,) = errors_of(err)
    assert code == 2
    assert all(word in line for word in words), line
