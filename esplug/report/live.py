"""Live report: serves the page on runs under way to a browser on this machine.

The page asks for a version every second, and fetches itself again if that has changed. The version depends on the sizes
and times of the runs' files and on their locks, so nothing is read until something changes.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from esplug.errors import UserError
from esplug.report.figures import compared, of_one
from esplug.report.page import Moment, render
from esplug.report.run_data import read_runs
from esplug.runs.directory import RunDirectory
from esplug.runs.summary import summarise
from esplug.utils.file_lock import is_held
from esplug.utils.text import cause

HOST = "127.0.0.1"
_LOCAL_NAMES = (HOST, "localhost")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LiveReport:
    """The page on one or several runs, made anew only when their files have changed. Threads may share it.

    Args:
        paths: directories of the runs.
        smoothing, full: as for :func:`esplug.report.page.render`.
    """

    def __init__(self, paths: Sequence[Path], *, smoothing: float = 0.0, full: bool = False) -> None:
        self._paths, self._smoothing, self._full = list(paths), smoothing, full
        self._lock = Lock()
        self._moment = Moment("", "")
        self._page = "", b""  # version and content

    def moment(self) -> Moment:
        """Return the present state of the runs."""
        digest = blake2b(digest_size=8)
        for path in self._paths:
            digest.update(repr((is_held(path), *_stamps(path))).encode())
        version = digest.hexdigest()
        with self._lock:
            if version != self._moment.version:
                self._moment = Moment(version, _status([summarise(path).state for path in self._paths]))
            return self._moment

    def page(self) -> bytes:
        """Return the page in UTF-8."""
        moment = self.moment()  # before the files are read: a change meanwhile gives another version
        with self._lock:
            if self._page[0] != moment.version:
                runs = read_runs(self._paths)
                panels = compared(runs) if len(runs) > 1 else of_one(runs[0])
                page = render(runs, panels, smoothing=self._smoothing, full=self._full, live=moment)
                self._page = moment.version, page.encode(errors="backslashreplace")
            return self._page[1]


class LiveServer(ThreadingHTTPServer):
    """Serves a live report on 127.0.0.1. Use it in a ``with`` statement, and call ``serve_forever``.

    Args:
        report: what to serve.
        port: of this machine; 0 for any free one.

    Raises:
        UserError: the port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, report: LiveReport, port: int) -> None:
        self.report = report
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port {port}: cannot be opened ({error.strerror or error}); give another one, or 0 for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close a connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        """Answer with the page or its version. A name that leads here from elsewhere (DNS rebinding) gets nothing."""
        if self.headers.get("Host", "").partition(":")[0] not in _LOCAL_NAMES:
            self._answer(403, "text/plain", b"open this page as localhost\n")
            return
        try:
            if self.path == "/":
                self._answer(200, "text/html; charset=utf-8", self.server.report.page())
            elif self.path == "/version":
                moment = self.server.report.moment()
                content = {"version": moment.version, "status": moment.status}
                self._answer(200, "application/json", json.dumps(content).encode())
            else:
                self._answer(404, "text/plain", b"not found\n")
        except ConnectionError:
            raise
        except Exception as error:  # whatever a damaged file leads to: the open page stays, and asks again
            self._answer(500, "text/plain; charset=utf-8", f"{cause(error)}\n".encode(errors="backslashreplace"))

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _status(states: Sequence[str]) -> str:
    running = states.count("running")
    if running == len(states):
        return "live"
    return f"live: {running} of {len(states)} runs" if running else f"ended: {', '.join(dict.fromkeys(states))}"


def _stamps(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of a run's files. Files in its folders appear complete, which changes the folder."""
    run = RunDirectory(path)
    with suppress(OSError):
        for file in sorted((run.path, *run.path.iterdir(), run.evaluations, run.iterations, run.checkpoints)):
            with suppress(OSError):  # gone meanwhile
                found = file.stat()
                yield str(file), found.st_size, found.st_mtime_ns
