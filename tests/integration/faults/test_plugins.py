"""Installed plugins that are broken in every way: other plugins still work, and errors name the broken one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.timing import slowness, within

pytestmark = pytest.mark.install

KINDS = {"task": "tasks", "shaping": "shapings", "logger": "loggers"}
GOOD = {
    "task": """
from esplug import hookimpl

@hookimpl
def collate(batch):
    return [row["q"] for row in batch], [row["a"] for row in batch]

@hookimpl
def template(question):
    return question

@hookimpl
def reward(model_output, target):
    return float(model_output == target)
""",
    "shaping": """
from esplug import hookimpl

@hookimpl
def shape(rewards):
    return rewards.mean(axis=1)
""",
    "logger": """
from esplug import hookimpl

@hookimpl
def log(step, metrics):
    pass
""",
}
HOOKS = {"task": ("reward", "target"), "shaping": ("shape", "rewards"), "logger": ("log", "metrics")}


def _in_front(line: str) -> dict[str, str]:
    return {kind: f"{line}\n{source}" for kind, source in GOOD.items()}


def _replaced(old: str, new: str) -> dict[str, str]:
    """Change each kind's last hook; HOOK and LAST stand for its name and its last argument."""
    out = {}
    for kind, (hook, last) in HOOKS.items():
        find, put = (text.replace("HOOK", hook).replace("LAST", last) for text in (old, new))
        assert find in GOOD[kind]
        out[kind] = GOOD[kind].replace(find, put)
    return out


FAULTS: dict[str, tuple[Mapping[str, str], list[str]]] = {  # fault: source for each kind, and words in the error
    "importerror": (_in_front("import esplug_no_such_module"), ["ModuleNotFoundError", "esplug_no_such_module"]),
    "syntaxerror": (_in_front("def broken(:"), ["SyntaxError"]),
    "runtimeerror": (_in_front("raise RuntimeError('two\\nlines')"), ["RuntimeError: two lines"]),
    "baseexception": (_in_front("class Odd(BaseException): pass\nraise Odd('odd')"), ["Odd: odd"]),
    "exit0": (_in_front("import sys; sys.exit(0)"), ["SystemExit: 0"]),
    "exit3": (_in_front("import sys; sys.exit(3)"), ["SystemExit: 3"]),
    "longerror": (_in_front("raise ValueError('x' * 100_000)"), ["ValueError: xxx"]),
    "recursion": (_in_front("def f(): f()\nf()"), ["RecursionError"]),
    "misspelt": (_replaced("def HOOK(", "def HOOKs("), ["no hook of a ", "did you mean"]),
    "missing": (_replaced("@hookimpl\ndef HOOK(", "def _HOOK("), ["lacks the required hook"]),
    "unmarked": (_replaced("@hookimpl\ndef HOOK(", "def HOOK("), ["without marking it", "@hookimpl"]),
    "signature": (_replaced("LAST):", "LAST, prompt):"), ["unknown argument 'prompt'", "it may take"]),
    "default": (_replaced("LAST):", "LAST=None):"), ["has a default", "remove that"]),
}
ENTRY_POINTS = {  # values that cannot be loaded, and words in the error
    "nomodule": ("acme_lost", ["ModuleNotFoundError", "acme_lost"]),
    "noattribute": ("{module}:lost", ["has no 'lost'"]),
    "malformed": ("{module}:a b", ["malformed entry point"]),
    "notcallable": ("{module}:__doc__", ["lacks the required hook"]),
}
HARMLESS = {
    "good": "",
    "prints": "print('hello from a plugin')",
    "slow": "import time; time.sleep(30)",
    "patches": "import builtins; builtins.open = builtins.len = None",
    "kills": "import os; os._exit(7)",
}


@dataclass
class Site:
    """A folder of installed packages, and a working directory."""

    folder: Path
    packages: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "site"

    def package(self, distribution: str, kind: str, name: str, source: str, value: str = "{module}") -> None:
        """Prepare a project with one plugin."""
        module, project = distribution.replace("-", "_"), self.folder / "sources" / distribution
        project.mkdir(parents=True)
        (project / f"{module}.py").write_text(source)
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n\n'
            f'[project]\nname = "{distribution}"\nversion = "0.3"\n\n'
            f'[project.entry-points."esplug.{KINDS[kind]}"]\n\'{name}\' = "{value.format(module=module)}"\n\n'
            f'[tool.setuptools]\npy-modules = ["{module}"]\n'
        )
        self.packages[distribution] = (kind, name, value)

    def install(self) -> None:
        """Build one wheel with pip, and lay out the others the same way, as pip takes a second for each."""
        first, *rest = self.packages
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        project = self.folder / "sources" / first
        subprocess.run([*pip, "--no-compile", "--target", self.path, project], check=True, capture_output=True)
        model = self.path / f"{first.replace('-', '_')}-0.3.dist-info"
        for distribution in rest:
            kind, name, value = self.packages[distribution]
            module = distribution.replace("-", "_")
            source = self.folder / "sources" / distribution / f"{module}.py"
            (self.path / source.name).write_text(source.read_text())
            info = self.path / f"{module}-0.3.dist-info"
            info.mkdir()
            (info / "METADATA").write_text((model / "METADATA").read_text().replace(first, distribution))
            text = f"[esplug.{KINDS[kind]}]\n{name} = {value.format(module=module)}\n"
            (info / "entry_points.txt").write_text(text, encoding="utf-8")

    def esplug(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        command = [sys.executable, "-m", "esplug", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=os.environ | environment, capture_output=True, text=True, timeout=30
        )

    def resolve(self, *flags: list[str]) -> list[tuple[int, str, str]]:
        """Resolve the plugins of several command lines in one new process, as `esplug train` does."""
        code = (
            "import io, json, sys\n"
            "from contextlib import redirect_stderr, redirect_stdout\n"
            "from esplug.cli import app, train\n"
            "from esplug import plugins\n"
            "from esplug.errors import RunError\n"
            "def trainer(config, task, command):\n"
            "    plugins.load('shaping', config.reward_shaping)\n"
            "    for name in config.logging: plugins.load('logger', name)\n"
            "    raise RunError('resolved')\n"
            "train.make_trainer, done = trainer, []\n"
            "for arguments in json.load(sys.stdin):\n"
            "    sys.argv, out, err = ['esplug', 'train', *arguments], io.StringIO(), io.StringIO()\n"
            "    try:\n"
            "        with redirect_stdout(out), redirect_stderr(err): app.main()\n"
            "    except SystemExit as end: done.append((end.code, out.getvalue(), err.getvalue()))\n"
            "json.dump(done, sys.stdout)\n"
        )
        environment = os.environ | {"PYTHONPATH": str(self.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=environment, input=json.dumps(flags),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [tuple(each) for each in json.loads(done.stdout)]


FLAGS = {"task": "--task", "shaping": "--reward-shaping", "logger": "--logging"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    site = Site(tmp_path_factory.mktemp("plugins"))
    for kind, source in GOOD.items():
        for name, line in HARMLESS.items():
            site.package(f"acme-{name}-{kind}", kind, f"{name}-{kind}", f"{line}\n{source}")
        for name, (sources, _) in FAULTS.items():
            site.package(f"acme-{name}-{kind}", kind, f"{name}-{kind}", sources[kind])
        for name, (value, _) in ENTRY_POINTS.items():
            site.package(f"acme-{name}-{kind}", kind, f"{name}-{kind}", source, value)
        for owner in ("first", "second"):
            site.package(f"acme-{owner}-{kind}", kind, f"twice-{kind}", source)
        site.package(f"acme-unicode-{kind}", kind, f"prüfung-{kind}", source)
    for kind, name in (("task", "countdown"), ("shaping", "z-scores"), ("logger", "csv")):
        site.package(f"zebra-{name}", kind, name, GOOD[kind])
    site.package("acme-defaults", "task", "defaults", GOOD["task"] + "@hookimpl\ndef defaults(): return {'sigmma': 1}")
    site.package("acme-ranges", "task", "ranges", GOOD["task"] + "@hookimpl\ndef defaults(): return {'sigma': -1}")
    site.package("acme-quits", "task", "quits", GOOD["task"] + "@hookimpl\ndef defaults(): raise SystemExit(0)")
    site.package("acme-nameless", "task", "nameless", "raise RuntimeError('no name')")
    site.install()
    (site.path / "acme_nameless-0.3.dist-info" / "METADATA").unlink()
    return site


def test_all_plugins_are_listed_quickly(site) -> None:
    with within(1 * slowness()):
        done = site.esplug("plugins", "--json")
    assert done.returncode == 0, done.stderr
    listed = {(each["kind"], each["name"], each["distribution"]) for each in json.loads(done.stdout)["plugins"]}
    listed = {(kind, name, distribution.replace("_", "-")) for kind, name, distribution in listed}
    assert {(kind, name, distribution) for distribution, (kind, name, _) in site.packages.items()} <= listed
    assert {("task", "countdown", "esplug-tasks-countdown"), ("logger", "csv", "esplug")} <= listed
    assert "hello" not in done.stdout


def test_the_table_lists_all_plugins(site) -> None:
    done = site.esplug("plugins", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[1] for line in done.stdout.splitlines()[1:]]
    assert names.count("twice-task") == names.count("csv") == 2
    assert {"good-task", "slow-shaping", "kills-logger", "exit0-task", "malformed-task", "prüfung-task"} <= set(names)
    assert done.stdout.count("duplicate: also in zebra-") == 3


@pytest.mark.parametrize(
    "content", [b"[esplug.tasks]\nno sign", b"[esplug.tasks]\nx = \xff\xfe", b"\xff[esplug.tasks]"]
)
def test_a_package_whose_entry_points_cannot_be_read_is_named(content, site, tmp_path) -> None:
    """Python cannot read such entry points, so other libraries fail too; the error is one line."""
    info = tmp_path / "broken_points-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-points\nVersion: 0.3\n")
    (info / "entry_points.txt").write_bytes(content)
    both = os.pathsep.join([str(tmp_path), str(site.path)])
    done = site.esplug("plugins", PYTHONPATH=both)
    assert (done.returncode, "good-task" in done.stdout) == (0, True)
    assert done.stderr.startswith("entry points of broken-points cannot be read ["), done.stderr
    done = site.esplug("train", "--task=no-such", PYTHONPATH=both)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "`esplug plugins` names it" in done.stderr


@pytest.mark.fault("broken plugin", 3)
def test_plugins_that_are_not_used_are_not_imported(site) -> None:
    """Loading one plugin imports no other, such as plugins that are slow, print, patch, exit or kill."""
    good = ["--task=good-task", "--reward-shaping=good-shaping", "--logging=good-logger,console"]
    with within(5 * slowness()):
        results = site.resolve(good, ["--task=math", "--reward-shaping=centered-ranks", "--logging=none"])
    for code, out, err in results:
        assert (code, out, err.splitlines()[-1]) == (1, "", "error: resolved")


def test_printing_at_import_is_allowed(site) -> None:
    flags = ["--task=prints-task", "--reward-shaping=prints-shaping", "--logging=prints-logger"]
    ((code, out, err),) = site.resolve(flags)
    assert (code, out.count("hello from a plugin"), err.splitlines()[-1]) == (1, 3, "error: resolved")


@pytest.mark.fault("broken plugin", 3 * (len(FAULTS) + len(ENTRY_POINTS)))
def test_a_broken_plugin_is_named_with_cause_and_remedy(site) -> None:
    cases = [
        (kind, name, words)
        for name, words in {
            **{n: w for n, (_, w) in FAULTS.items()},
            **{n: w for n, (_, w) in ENTRY_POINTS.items()},
        }.items()
        for kind in KINDS
    ]
    assert len(cases) == 3 * (len(FAULTS) + len(ENTRY_POINTS))
    base = {"task": "good-task", "shaping": "good-shaping", "logger": "good-logger"}
    given = [
        [f"{FLAGS[each]}={f'{name}-{kind}' if each == kind else base[each]}" for each in KINDS]
        for kind, name, _ in cases
    ]
    for (kind, name, words), (code, out, err) in zip(cases, site.resolve(*given), strict=True):
        line = err.splitlines()[-1]
        assert (code, out, len(line) < 800) == (2, "", True), (name, err)
        assert sum(each.startswith("error: ") for each in err.splitlines()) == 1, err
        assert line.startswith(f"error: {kind} '{name}-{kind}' (acme-{name}-{kind} 0.3)"), line
        assert all(word in line for word in words), line
        remedies = ("pip install -U acme", "did you mean", "put @hookimpl", "it may take", "remove that")
        assert any(remedy in line for remedy in remedies), line


@pytest.mark.fault("broken plugin", 3)
def test_a_duplicate_name_names_both_packages_and_the_remedy(site) -> None:
    base = {"task": "good-task", "shaping": "good-shaping", "logger": "good-logger"}
    given = ([f"{FLAGS[each]}={f'twice-{kind}' if each == kind else base[each]}" for each in KINDS] for kind in KINDS)
    for kind, (code, _, err) in zip(KINDS, site.resolve(*given), strict=True):
        line = err.splitlines()[-1]
        assert code == 2
        assert f"acme-first-{kind} 0.3 and acme-second-{kind} 0.3" in line, line
        assert f"pip uninstall acme-first-{kind}" in line


@pytest.mark.fault("broken plugin", 3)
def test_a_plugin_with_the_name_of_a_built_in_is_to_be_removed(site) -> None:
    shadows = [
        ["--task=countdown"],
        ["--task=good-task", "--reward-shaping=z-scores"],
        ["--task=good-task", "--reward-shaping=good-shaping", "--logging=csv"],
    ]
    for (code, _, err), name in zip(site.resolve(*shadows), ("countdown", "z-scores", "csv"), strict=True):
        assert (code, f"zebra-{name} 0.3" in err) == (2, True), err
        if name != "countdown":
            assert f"pip uninstall zebra-{name}" in err, err


@pytest.mark.fault("broken plugin", 4)
def test_hooks_that_exit_or_return_invalid_defaults_are_errors_of_the_plugin(site) -> None:
    names = ["defaults", "ranges", "quits", "nameless"]
    words = [["sigmma", "sigma"], ["--sigma -1", "greater than 0"], ["SystemExit: 0"], ["RuntimeError: no name"]]
    for name, expected, (code, _, err) in zip(
        names, words, site.resolve(*([f"--task={n}"] for n in names)), strict=True
    ):
        line = err.splitlines()[-1]
        assert code == 2
        assert line.replace("_", "-").startswith(f"error: task {name!r} (acme-{name} "), line
        assert all(word in line for word in expected), line
    assert "pip install -U acme_nameless" in line


def test_a_plugin_that_kills_the_process_ends_only_runs_that_use_it(site) -> None:
    assert site.esplug("train", "--task=kills-task").returncode == 7
    assert site.esplug("plugins").returncode == 0


def test_names_in_any_script_work(site) -> None:
    ((code, _, err),) = site.resolve(
        ["--task=prüfung-task", "--reward-shaping=prüfung-shaping", "--logging=prüfung-logger"]
    )
    assert (code, err.splitlines()[-1]) == (1, "error: resolved")
