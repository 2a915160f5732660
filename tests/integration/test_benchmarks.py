"""Every benchmark can be imported, and has a page."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

#: Imports every module, and every name of this repository that a function imports. Triton's kernels are interpreted.
IMPORT_ALL = """
import ast, importlib, os, pkgutil
os.environ["TRITON_INTERPRET"] = "1"
import benchmarks
for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."):
    source = importlib.import_module(module.name).__file__
    for node in ast.walk(ast.parse(open(source).read())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("benchmarks", "esplug", "tests")):
            exec(compile(ast.Module([node], []), source, "exec"))
    print(module.name)
"""


def test_every_module_can_be_imported_and_every_folder_has_a_page() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
    assert {f"benchmarks.{folder}.__main__" for folder in folders} < set(done.stdout.split())
    summary = (BENCHMARKS / "README.md").read_text()
    assert [folder for folder in folders if f"]({folder}/README.md" not in summary] == []
    assert [folder for folder in folders if not (BENCHMARKS / folder / "README.md").exists()] == []
