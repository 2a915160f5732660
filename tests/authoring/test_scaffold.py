"""`esplug init`: packages that work without changes, and one-line errors."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from esplug.authoring.scaffold.new_plugin import NewPlugin
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.packages import build_and_install, run_with

NEW = {"task": "answer-length", "shaping": "steep", "logger": "status"}
DISTRIBUTIONS = {
    "task": "esplug-tasks-answer-length", "shaping": "esplug-shapings-steep", "logger": "esplug-loggers-status"
}  # fmt: skip


def ruff(*arguments: str, cwd: Path) -> None:
    done = subprocess.run([Path(sys.executable).with_name("ruff"), *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", NEW)
def test_init_writes_a_package_and_prints_the_next_steps(kind, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli(monkeypatch, capfd, "init", NEW[kind], "--kind", kind)
    folder = tmp_path / DISTRIBUTIONS[kind]
    module = DISTRIBUTIONS[kind].replace("-", "_")
    assert code == 0
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {
        *("pyproject.toml", "README.md", ".gitignore", ".github/workflows/ci.yml"),
        *(f"{module}/__init__.py", f"tests/test_{NEW[kind].replace('-', '_')}.py"),
    }
    assert all(path in out for path in written)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTIONS[kind]
    assert project["entry-points"][f"esplug.{kind}s"][NEW[kind]].split(":")[0] == module
    *_, enter, install, lint, test, check, train = (line.strip() for line in out.splitlines())
    assert enter == f"cd {DISTRIBUTIONS[kind]}"
    assert (install, lint, test, check) == (
        'python -m pip install -e ".[test]"', "ruff check . && ruff format .", "pytest", f"esplug check {NEW[kind]}"
    )  # fmt: skip
    for command in (install, lint, test, check, train):
        assert command in (folder / "README.md").read_text()
    assert NEW[kind] in train


@pytest.mark.parametrize(("kind", "turns"), [*((kind, False) for kind in NEW), ("task", True)])
@pytest.mark.parametrize("name", ["a", "3-digits", "a-name-of-exactly-40-characters-" + "x" * 8])
def test_any_name_gives_clean_code(kind, turns, name, tmp_path) -> None:
    NewPlugin.named(kind, name, turns=turns).write(tmp_path / "new")
    ruff("check", "--no-cache", ".", cwd=tmp_path / "new")
    ruff("format", "--no-cache", "--check", ".", cwd=tmp_path / "new")
    workflow = yaml.safe_load((tmp_path / "new" / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][1]["with"] == {"python-version": "${{ matrix.python }}"}
    check = workflow["jobs"]["test"]["steps"][-1]["run"]
    assert check == f'esplug check {name} --kind {kind} | tee /dev/stderr | grep "^all .* checks pass"'
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "${GITHUB_REF_NAME#v}" in workflow["jobs"]["publish"]["steps"][1]["run"]


def test_the_name_may_have_the_prefix_of_distributions() -> None:
    assert NewPlugin.named("task", "esplug-tasks-haiku") == NewPlugin.named("task", "haiku")


MISTAKES = [
    (["math", "--kind", "task"], ["task 'math' (esplug-tasks-math", "already installed", "another name"]),
    (["esplug-shapings-z-scores", "--kind", "shaping"], ["shaping 'z-scores' (esplug ", "already installed"]),
    (["Haiku", "--kind", "task"], ["'Haiku'", "lower-case"]),
    (["ha_iku", "--kind", "task"], ["'ha_iku'", "lower-case"]),
    (["ha--iku", "--kind", "task"], ["'ha--iku'", "single dashes"]),
    (["../haiku", "--kind", "task"], ["'../haiku'", "lower-case"]),
    (["", "--kind", "task"], ["''", "lower-case"]),
    (["x" * 41, "--kind", "task"], ["at most 40"]),
    (["esplug-loggers-x", "--kind", "task"], ["name of a logger", "--kind logger"]),
    (["esplug-tasks-esplug-loggers-x", "--kind", "task"], ["two prefixes"]),
    (["haiku", "--kind", "task", "--directory", "~nosuchuser/x"], ["--directory ~nosuchuser/x", "name another folder"]),
    (["haiku", "--kind", "tusk"], ["--kind", "tusk", "shaping"]),
    (["haiku"], ["--kind"]),
    (["haiku", "--kind", "logger", "--turns"], ["--turns is for tasks"]),
    (["haiku", "--kind", "task", "--directory", "{tmp}"], ["already exists", "--directory"]),
    (["haiku", "--kind", "task", "--directory", "{tmp}/file/new"], ["cannot be written", "--directory"]),
    (["haiku", "--kind", "task", "--directory", "{tmp}/" + "x" * 300], ["cannot be written"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line_and_writes_nothing(arguments, words, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, _, err = run_cli(monkeypatch, capfd, "init", *(each.format(tmp=tmp_path) for each in arguments))
    assert (code, len(errors_of(err))) == (2, 1), err
    assert all(word in errors_of(err)[0] for word in words), err
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def full_at_the_readme(path: Path, *arguments, real=Path.write_text, **options):
    if path.name == "README.md":
        path.touch()
        raise OSError(28, "No space left on device")
    return real(path, *arguments, **options)


def test_a_full_disk_leaves_no_files(monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.setattr(Path, "write_text", full_at_the_readme)
    code, _, err = run_cli(monkeypatch, capfd, "init", "haiku", "--kind", "task", "--directory", str(tmp_path / "new"))
    assert (code, "No space left" in err, list(tmp_path.iterdir())) == (2, True, [])


@pytest.mark.parametrize("inside", [[], [".git"]])
@pytest.mark.parametrize("fails", [False, True])
def test_an_empty_folder_or_a_new_repository_is_accepted(inside, fails, monkeypatch, capfd, tmp_path) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    if fails:
        monkeypatch.setattr(Path, "write_text", full_at_the_readme)
    code, _, _ = run_cli(monkeypatch, capfd, "init", "haiku", "--kind", "task", "--directory", str(tmp_path))
    assert code == (2 if fails else 0)
    assert (tmp_path / "pyproject.toml").exists() != fails
    assert not fails or [path.name for path in tmp_path.iterdir()] == inside


@pytest.fixture(scope="module")
def new_packages(tmp_path_factory) -> tuple[Path, Path]:
    """Return the folder of new packages, and the one into which their wheels are installed."""
    folder = tmp_path_factory.mktemp("new")
    for kind, name in NEW.items():
        NewPlugin.named(kind, name).write(folder / DISTRIBUTIONS[kind])
    NewPlugin.named("task", "hints", turns=True).write(folder / "esplug-tasks-hints")
    return folder, build_and_install(
        [folder / each for each in (*DISTRIBUTIONS.values(), "esplug-tasks-hints")], folder
    )


@pytest.mark.install
def test_new_packages_pass_their_own_tests_and_the_check(new_packages) -> None:
    folder, site = new_packages
    listed = json.loads(run_with(site, "esplug", "plugins", "--json").stdout)["plugins"]
    found = {(plugin["kind"], plugin["name"], plugin["distribution"], plugin["status"]) for plugin in listed}
    packages = [(kind, name, DISTRIBUTIONS[kind]) for kind, name in NEW.items()]
    for kind, name, distribution in [*packages, ("task", "hints", "esplug-tasks-hints")]:
        assert (kind, name, distribution, "ok") in found
        tests = run_with(site, "pytest", "-q", "-p", "no:cacheprovider", cwd=folder / distribution)
        assert tests.returncode == 0, tests.stdout
        check = run_with(site, "esplug", "check", name)
        assert check.returncode == 0, check.stdout
        assert re.search(r"all \d+ checks pass", check.stdout)


@pytest.mark.vllm
@pytest.mark.install
def test_new_packages_train_together(new_packages, tiny_model, tmp_path) -> None:
    _, site = new_packages
    flags = "--task answer-length --task-option longest=4 --reward-shaping steep --logging jsonl,status"
    flags += " --n-iterations 1 --population-size 2 --batch-size 4 --max-tokens 8 --eval-limit 2"
    flags += " --n-vllm-engines 1 --experiment-name run"
    where = ["--model-name", str(tiny_model), "--output-directory", str(tmp_path)]
    done = run_with(site, "esplug", "train", *flags.split(), *where)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    status = json.loads((run / "status-status.json").read_text())
    assert (status["state"], status["task"], status["step"]) == ("finished", "answer-length", 1)
    assert "train/reward/mean" in status["metrics"]
    assert "eval/held_out/pass@1/mean" in status["metrics"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1]
    members = json.loads((run / "train-output" / "iteration0.json").read_text())["members"]
    assert sorted(member["utility"] for member in members) in ([-1.0, 1.0], [0.0, 0.0])


@pytest.mark.vllm
@pytest.mark.install
def test_the_example_of_a_new_task_gives_a_signal(new_packages, small_model, tmp_path) -> None:
    _, site = new_packages
    words = NewPlugin.named("task", NEW["task"]).training.split()[1:]
    words[words.index("--model-name") + 1] = str(small_model)
    words[words.index("--n-iterations") + 1] = "1"
    fewer = "--eval-limit 2 --dtype float32 --n-vllm-engines 1"
    done = run_with(site, "esplug", *words, *fewer.split(), "--output-directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("*/train-output/iteration0.json")
    metrics = json.loads(record.read_text())["metrics"]
    assert metrics["train/reward/mean"] > 0.1
    assert metrics["train/reward/std"] > 0
    assert "nothing was learnt" not in done.stdout
