"""Shell completion as bash asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.packages import OWN_TASKS
from tests.helpers.timing import start_quickly

ESPLUG = Path(sys.executable).parent / "esplug"


def completions(*words: str) -> list[str]:
    """Ask for what may stand in place of the last word."""
    environment = os.environ | {"COMP_WORDS": " ".join(["esplug", *words]), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [str(ESPLUG)],
        capture_output=True,
        text=True,
        env=environment | {"_ESPLUG_COMPLETE": "complete_bash", "PYTHONSAFEPATH": "1"},
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], ["doctor"]),
        (["train", "--task", ""], OWN_TASKS),
        (["train", "--task", "cou"], ["countdown"]),
        (["eval", "--task", "mat"], ["math"]),
        (["train", "--reward-shaping", "z-scores-"], ["z-scores-per-prompt"]),
        (["train", "--logging", "console,js"], ["console,jsonl"]),
        (["train", "--recipe", ""], ["paper", "fast"]),
        (["train", "--master-de"], ["--master-device"]),
        (["config", "show", "--dtype", "b"], ["bfloat16"]),
        (["data", "build", "math_"], ["math_small"]),
        (["train", "--config", "exam"], []),  # then bash offers files
    ],
)
def test_values_and_flags_complete(words, offered) -> None:
    assert completions(*words) == offered


def test_completing_is_fast_and_imports_no_plugin() -> None:
    environment = os.environ | {"COMP_WORDS": "esplug train --task ", "COMP_CWORD": "3"}
    code = (
        "import sys, atexit; sys.argv = ['esplug']\n"
        "heavy = ('torch', 'vllm', 'ray', 'openai', 'reasoning_gym', 'verifiers')\n"
        "loaded = lambda: [name for name in sys.modules if name in heavy or name.startswith('esplug_tasks_')]\n"
        "atexit.register(lambda: print('LOADED', loaded(), file=sys.stderr))\n"
        "from esplug.cli.app import main; main()"
    )
    done = start_quickly([sys.executable, "-c", code], env=environment | {"_ESPLUG_COMPLETE": "complete_bash"})
    assert "countdown" in done.stdout.split()
    assert "LOADED []" in done.stderr


def test_bash_completes_after_installing(tmp_path) -> None:
    """With the script that `esplug --install-completion` writes into the user's home."""
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{ESPLUG.parent}:{os.environ['PATH']}", "SHELL": "bash"}
    script = (
        "esplug --install-completion bash && source ~/.bash_completions/esplug.sh\n"
        "COMP_WORDS=(esplug train --task cou); COMP_CWORD=3\n"
        "_esplug_completion esplug; echo offered ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "offered countdown", done
