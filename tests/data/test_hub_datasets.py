"""Data sets from the Hub and from local copies of its repositories."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from esplug.data.batches import load_eval_splits
from esplug.data.hub_datasets import hub_revision
from esplug.errors import UserError
from tests.helpers.rows import ROWS, names, read_splits, task, write
from tests.helpers.timing import within


def hub_copy(folder: Path, **configs) -> Path:
    """Write what `hf download --repo-type dataset` does: a card with YAML, and files of rows."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            write(folder / config, "jsonl", rows).rename(folder / config / f"{split}.jsonl")
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A card"]), encoding="utf-8")
    return folder


def test_a_local_copy_of_a_hub_repository_is_read(cache, tmp_path) -> None:
    path = hub_copy(tmp_path / "owner" / "sums", default={"train": ROWS, "test": ROWS[:1]})
    assert load_eval_splits(task(), str(path), 2) == {
        "train": [(["one", "zwei, drei"], [1, 23])],
        "test": [(["one"], [1])],
    }


def test_a_copy_with_configurations_asks_for_one(cache, tmp_path) -> None:
    path = hub_copy(tmp_path / "sums", easy={"test": ROWS[:1]}, hard={"test": ROWS})
    with pytest.raises(UserError, match=r"--eval-dataset .*sums: add :CONFIG, one of easy, hard$"):
        names(path)
    splits = load_eval_splits(task(), f"{path}:easy", None)
    assert splits == {"test": [(["one"], [1])]}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("name", ("name", None, None)),
        ("owner/name:main", ("owner/name", "main", None)),
        ("owner/na.me:hard@refs/pr/1", ("owner/na.me", "hard", "refs/pr/1")),
    ],
)
def test_hub_ids_may_name_configuration_and_revision(path, expected, monkeypatch) -> None:
    asked = []

    def revision_of(name, revision):
        asked.append((name, revision))
        return "c0ffee"

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return {"test": ROWS}

    monkeypatch.setattr("esplug.data.hub_datasets.hub_revision", revision_of)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_splits(path, "train") == {"test": ROWS}
    name, config, revision = expected
    assert asked == [(name, revision), (name, config, "c0ffee")]


@pytest.mark.parametrize("path", ["owner/name", "owner/name:easy", "owner/name@v2"])
def test_a_hub_out_of_reach_is_one_line_at_once_and_says_what_to_do(path, no_hub, cache) -> None:
    with within(5), pytest.raises(UserError) as caught:
        read_splits(path, "train")
    assert str(caught.value) == (
        f"--train-dataset {path}: no such file or folder, and the Hugging Face Hub is out of reach; on a machine "
        "that reaches it, run `hf download --repo-type dataset owner/name --local-dir DIR`, then give DIR"
    )


@pytest.fixture
def small_hub(monkeypatch) -> Iterator[None]:
    """Serve a Hub that knows one data set, `owner/name`, in two revisions."""

    class Hub(BaseHTTPRequestHandler):
        commits: ClassVar = {"/api/datasets/owner/name": "c0ffee", "/api/datasets/owner/name/revision/v1": "0ddba11"}

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            body = json.dumps({"id": "owner/name", "sha": self.commits.get(path)}).encode()
            self.send_response(200 if path in self.commits else 404)
            for header in [("Content-Length", str(len(body))), ("X-Error-Code", "RepoNotFound")]:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_the_hub_is_asked_for_the_commit(small_hub) -> None:
    assert hub_revision("owner/name", None) == "c0ffee"
    assert hub_revision("owner/name", "v1") == "0ddba11"
    with pytest.raises(UserError, match=r"^--eval-dataset owner/nam: no such file .* not available from the Hub: 404"):
        read_splits("owner/nam", "eval")


def test_a_name_that_the_hub_does_not_allow_is_not_called_out_of_reach(no_hub) -> None:
    with pytest.raises(
        UserError, match=r"^--train-dataset -x: no such file or folder, and not available from the Hub: "
    ):
        read_splits("-x", "train")


def test_a_data_set_that_the_hub_lacks_is_one_line(monkeypatch) -> None:
    def revision_of(*_):
        raise LookupError("404 Client Error")

    monkeypatch.setattr("esplug.data.hub_datasets.hub_revision", revision_of)
    with pytest.raises(UserError, match=r"^--train-dataset owner/name: .* from the Hub: 404 Client Error$"):
        read_splits("owner/name", "train")


def test_a_failing_download_is_one_line(monkeypatch) -> None:
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr("esplug.data.hub_datasets.hub_revision", lambda *_: "c0ffee")
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^--train-dataset owner/name: not readable from the Hub: no route$"):
        read_splits("owner/name", "train")
