"""Checks of the documentation: commands, settings, code and links are valid, and the site builds."""

import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import typer

from esplug import hookspecs
from esplug.cli.app import app
from esplug.config import RunConfig, make_config
from scripts.settings_tables import tables
from tests.helpers.docs import FENCE, blocks, text_of

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]

#: Flags of other programs that pages mention.
FOREIGN = {
    "--tasks", "--include_path", "--gen_kwargs", "--output_path", "--log_samples", "--model_args", "--batch_size",
    "--start-iteration", "--backend", "--model_name", "--cuda_devices", "--num_engines", "--population_size",
    "--num_iterations", "--experiment_dir", "--precision", "--num-gpus", "--generate", "--only", "--no-amx", "--print",
    "--disagreements", "--show", "--names", "--rows", "--shots", "--host", "--served-model-name",
}  # fmt: skip
every_page = pytest.mark.parametrize("page", PAGES, ids=str)


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


# --- code -----------------------------------------------------------------------------------------------


@every_page
def test_python_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@every_page
def test_toml_is_settings_that_hold_or_a_project(page: Path) -> None:
    for text in blocks(page, "toml"):
        content = tomllib.loads(text)
        if not content.keys() & {"build-system", "project"}:
            make_config({key.replace("-", "_"): value for key, value in content.items()})


# --- commands -------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``esplug`` command in a block, with continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True) if re.match(r"(\$ )?(\S*/)?esplug ", line) else []
        if words:
            yield list(itertools.takewhile(lambda word: word not in (">", "|"), words[1:]))


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse the arguments with the real command line, without running anything."""
    command: Any = typer.main.get_command(app)
    name = "esplug"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no such command: {name} {words[0]}"
        name = f"{name} {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    if name == "esplug" and any(option.opts == words for option in command.params):  # these act at once
        return name, {}
    return name, command.make_context(name, list(words)).params


COMMANDS = [
    pytest.param(words, id=f"{page}: {' '.join(words)}"[:90])
    for page in PAGES
    for block in blocks(page, "", "bash", "console", "sh")
    for words in commands(block)
]


def test_there_are_commands_to_be_checked() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_that_esplug_takes(words: list[str]) -> None:
    name, params = parse(words)
    if name in ("esplug train", "esplug eval"):
        given = {key: params[key] for key in params.keys() & RunConfig.model_fields if params[key] not in (None, [])}
        make_config(given, command="eval" if name == "esplug eval" else "train")


@pytest.mark.parametrize("words", [["train", "--sigmma", "1"], ["evl"], ["train", "--resume"]])
def test_a_command_that_esplug_does_not_take_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|requires an argument"):
        parse(words)


@cache
def all_flags() -> frozenset[str]:
    def of(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for each in getattr(command, "commands", {}).values():
            yield from of(each)

    return frozenset(of(typer.main.get_command(app))) | {"--help"}


@every_page
def test_flags_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"`(--[a-z][\w-]*)", prose(page)))
    assert named - all_flags() - FOREIGN == set()


def test_the_command_of_the_slurm_script_is_real() -> None:
    text = Path("deploy/slurm.sbatch").read_text(encoding="utf-8")
    (settings,) = re.findall(r"settings=\(\n(.*?)\n +\)", text, re.DOTALL)
    name, params = parse(["train", *shlex.split(settings.replace("$", "")), "--ray-address", "node1:20077"])
    assert name == "esplug train"
    assert params["checkpoint_every"] == "20"
    assert parse(["train", "--resume", "run", "--ray-address", "node1:20077"])[1]["ray_address"] == "node1:20077"


# --- reference ------------------------------------------------------------------------------------------


def test_the_tables_of_settings_are_the_configurations_own() -> None:
    assert tables() in Path("docs/settings.md").read_text(encoding="utf-8"), "run python -m scripts.settings_tables"


@pytest.mark.parametrize(
    "spec", [hookspecs.TaskSpec, hookspecs.DatasetSpec, hookspecs.ShapingSpec, hookspecs.LoggerSpec]
)
def test_every_hook_stands_in_the_table_with_its_arguments(spec: type) -> None:
    hooks = {name: hook for name, hook in vars(spec).items() if inspect.isfunction(hook)}
    assert hooks
    page, readme = Path("docs/api/hooks.md").read_text(encoding="utf-8"), Path("README.md").read_text(encoding="utf-8")
    for name, hook in hooks.items():
        arguments = [argument for argument in inspect.signature(hook).parameters if argument != "self"]
        assert f"`{name}({', '.join(arguments)})" in page
        assert f"`{name}`" in readme


def test_the_architecture_page_has_a_row_per_room_in_the_order_of_the_contract() -> None:
    text = Path("docs/architecture.md").read_text(encoding="utf-8")
    contract = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
    layers = [layer.split(" | ") for layer in contract["layers"]]
    expected = [
        (room if Path("esplug", room).is_dir() else f"{room}.py", str(level))
        for level, layer in zip(range(len(layers), 0, -1), layers, strict=True)
        for room in layer
    ]
    assert [
        (room.rstrip("/"), level) for room, level in re.findall(r"^\| `([\w./]+)` .*\| (\d+) \|$", text, re.M)
    ] == expected


def test_the_architecture_page_names_no_module_that_is_not_there() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", Path("docs/architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    assert [name for name in named if not (Path("esplug") / name).exists() and not Path(name).exists()] == []


def test_the_shaping_in_contributing_works() -> None:
    module, known = blocks(Path("CONTRIBUTING.md"), "python")
    shaping, expected = ModuleType("above_median"), ModuleType("known")
    exec(module, vars(shaping))
    exec(known, vars(expected))
    rewards = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [1.0, 5.0]])  # those of test_shaping.test_known_values
    np.testing.assert_allclose(shaping.shape(rewards), expected.expected["above-median"])


# --- links ----------------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MyST give a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES[:2], ids=str)  # Sphinx checks the others
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_links_to_elsewhere_have_their_form(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            parts = urlsplit(link)
            assert parts.scheme == "https", link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
            assert not re.search(r"example|localhost|<|\bowner\b", link, re.IGNORECASE), link


@pytest.mark.install
def test_the_site_builds_without_a_warning_and_needs_nothing_from_the_network(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="pip install -e '.[docs]'")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    offline = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(build, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    made = {page.relative_to("docs").with_suffix(".html") for page in PAGES if page.is_relative_to("docs")}
    assert {page for page in made if not (tmp_path / page).is_file()} == set()
    for page in made:
        html = (tmp_path / page).read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]+"', html) == []
        assert re.findall(r'<link[^>]* rel="stylesheet"[^>]* href="(?:https?:)?//[^"]+"', html) == []
