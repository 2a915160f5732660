"""Local Ray clusters, started one after the other in one process by esplug and by others."""

import os
import subprocess
import sys

import pytest

from esplug.config import make_config
from esplug.engines.cluster import Cluster, cluster_address
from esplug.errors import UserError

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


@pytest.mark.parametrize(
    ("flag", "variable", "used"),
    [
        (None, None, None),
        (None, "", None),
        (None, "local", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, " auto\n", "auto"),
        ("head:6379", "10.0.0.1:6379", "head:6379"),
        ("auto", "http://head:8265", "auto"),
    ],
)
def test_the_address_is_that_of_the_flag_or_of_the_job(flag, variable, used, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    config = make_config({"ray_address": flag} if flag else {})
    assert cluster_address(config) == used
    assert config.ray_address == flag


def test_an_address_of_the_environment_that_is_wrong_is_named(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS 'http://head:8265': must be 'auto', or host:port; .*API_SERVER"):
        cluster_address(make_config({}))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS 127\.0\.0\.1:1: no Ray cluster answers there"):
        Cluster("127.0.0.1:1", None)
    with pytest.raises(UserError, match=r"^--ray-address 127\.0\.0\.1:2: no Ray cluster answers there"):
        Cluster("127.0.0.1:2", None)
