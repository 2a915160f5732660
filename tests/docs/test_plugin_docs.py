"""The pages for plugin authors: their packages install and work, and their tables are complete."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esplug import hookspecs
from tests.helpers.packages import build_and_install, files_in, run_with, write
from tests.helpers.plugins import names_of_checks

EXAMPLES = {"tasks": "json-facts", "shapings": "nes", "loggers": "best-answers"}
SPECS = [hookspecs.TaskSpec, hookspecs.DatasetSpec, hookspecs.ShapingSpec, hookspecs.LoggerSpec]
HOOKS = Path("docs/plugins/hooks.md").read_text(encoding="utf-8")


def test_the_table_of_hooks_is_complete() -> None:
    rows = re.findall(r"^\|[^|]*\| `(\w+)\((.*)\)` \| (yes)?", HOOKS, re.MULTILINE)
    real = [
        (name, ", ".join(each for each in inspect.signature(hook).parameters if each != "self"))
        for spec in SPECS
        for name, hook in vars(spec).items()
        if inspect.isfunction(hook)
    ]
    assert sorted((name, arguments) for name, arguments, _ in rows) == sorted(real)
    required = {name for name, _, yes in rows if yes}
    assert required == {"collate", "template", "reward", "build", "shape", "log"}
    assert f"The hooks are version {hookspecs.API_VERSION}." in HOOKS


def test_a_retiring_argument_is_told_once_and_still_passed(tmp_path) -> None:
    """Run the page's example specification with a plugin that uses the argument's old name."""
    (example,) = re.findall(r"```python\n(.*?)```", HOOKS, re.DOTALL)
    (line,) = re.findall(r"```\n(shaping 'steep'.*)\n```", HOOKS)
    site = tmp_path / "site"
    plugin = "from esplug import hookimpl\n@hookimpl\ndef shape(rewards): return rewards\n"
    files = {
        "steep.py": plugin,
        "new.py": plugin.replace("rewards", "matrix"),
        "esplug_shapings_steep-0.3.dist-info/METADATA": "Name: esplug-shapings-steep\nVersion: 0.3\n",
        "esplug_shapings_steep-0.3.dist-info/entry_points.txt": "[esplug.shapings]\nsteep = steep\nnew = new\n",
    }
    code = f"""
from esplug.plugins import loading
{example}
loading._SPECS = {{**loading._SPECS, "shaping": ShapingSpec}}
for name in ("steep", "steep", "new"):
    print(loading.load("shaping", name).shape(matrix=[1.0], rewards=[1.0]))
"""
    write(files, site)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[1.0]\n" * 3, f"{line}\n")


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_table_of_checks_is_complete(page) -> None:
    text = Path(f"docs/plugins/{page}.md").read_text(encoding="utf-8")
    table = text[text.index("| check | passes if |") :]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    for name in names_of_checks(page):
        assert all(word in first_cells for word in name.split() if not word.isdigit()), name


@pytest.mark.install
def test_the_packages_of_the_pages_install_and_pass(tmp_path) -> None:
    projects = [write(files_in(f"docs/plugins/{page}.md"), tmp_path / page) for page in EXAMPLES]
    site = build_and_install(projects, tmp_path)
    listed = run_with(site, "esplug", "plugins").stdout
    for project, (kinds, name) in zip(projects, EXAMPLES.items(), strict=True):
        assert re.search(rf"{kinds[:-1]} +{name} +esplug-{kinds}-{name} +0\.1\.0 +ok", listed)
        tests = run_with(site, "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=project)
        assert tests.returncode == 0, tests.stdout
        check = run_with(site, "esplug", "check", name)
        assert check.returncode == 0, check.stdout
