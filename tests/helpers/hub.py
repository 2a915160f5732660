"""A small Hugging Face Hub: as much of its HTTP interface as the library needs to upload a model."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.helpers.servers import in_a_thread

TOKEN = "hf_planted"


@dataclass
class FakeHub:
    """A running Hub.

    Attributes:
        url: its address.
        repos: the repositories by name; each has ``private``, and ``main`` and other branches with files by name.
        commits: the message of each commit.
        requests: method and path of each request.
    """

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN, **constants: Any) -> None:
        """Have the library in this process use this Hub, or another value of one of its constants."""
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        ours = {"ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": "no/token", "HF_HUB_OFFLINE": False}
        for name, value in (ours | constants).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a Hub in a thread."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if not path.startswith("/stored/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, answer = 401, {"error": "Invalid user token."}
        else:
            status, answer = self._answer(path.strip("/").split("/"), body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, parts: list[str], body: bytes) -> tuple[int, Any]:
        hub = self.hub
        match [self.command, *parts]:
            case ["GET", "api", "whoami-v2"]:
                return 200, {"type": "user", "name": "me", "auth": {}}
            case ["POST", "api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if not name.startswith("me/"):
                    return 403, {"error": "You don't have the rights to create a model under this namespace"}
                if name in hub.repos:
                    return 409, {"url": f"{hub.url}/{name}"}
                private = bool(asked.get("private")) or asked.get("visibility") == "private"
                hub.repos[name] = {"private": private, "main": {}}
                return 200, {"url": f"{hub.url}/{name}"}
            case ["GET", "api", "models", owner, name] if f"{owner}/{name}" in hub.repos:
                return 200, {"id": f"{owner}/{name}", "private": hub.repos[f"{owner}/{name}"]["private"]}
            case ["POST", "api", "models", owner, name, "branch", branch]:
                hub.repos[f"{owner}/{name}"].setdefault(branch, {})
                return 200, {}
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["POST", "api", "models", _, _, "preupload", _]:
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
                return 200, {
                    "files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
                }
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                objects = [{"oid": each["oid"], "size": each["size"]} for each in json.loads(body)["objects"]]
                for each in objects:
                    each["actions"] = {"upload": {"href": f"{hub.url}/stored/{each['oid']}"}}
                return 200, {"transfer": "basic", "objects": objects}
            case ["PUT", "stored", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                hub.stored[oid] = body
                return 200, {}
            case ["POST", "api", "models", owner, name, "commit", branch]:
                files = hub.repos[f"{owner}/{name}"][branch]
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "header":
                        hub.commits.append(value["summary"])
                    elif line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    else:
                        files[value["path"]] = hub.stored[value["oid"]]
                return 200, {"commitUrl": f"{hub.url}/{owner}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40}
        return 404, {"error": f"not here: {self.command} {self.path}"}

    def log_message(self, *_: object) -> None:
        pass
