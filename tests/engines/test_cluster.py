"""Local Ray clusters, started one after the other in one process by esplug and by others."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
import ray
from esplug.engines.cluster import Cluster

def theirs():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()

def ours():
    cluster = Cluster(None, "none")
    yield
    cluster.close()

for letter in sys.argv[1]:
    for _ in {"t": theirs, "o": ours}[letter]():
        assert ray.get(ray.remote(lambda: letter).remote()) == letter
print("done")
"""


@pytest.mark.vllm
@pytest.mark.parametrize("order", ["tot", "oto"])
def test_on_a_new_machine_each_finds_the_token_of_its_cluster(order, tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, order],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "done\n", done.stderr
