"""Chat server: a small OpenAI-compatible HTTP server that misbehaves as a test says."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any = "yes", first: dict[str, float] | None = None, tokens: tuple[int, int] = (100, 1)) -> bytes:
    """Return the body of a chat completion. ``first`` maps likely first tokens to their probabilities."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if first is not None:
        top = [{"token": token, "logprob": math.log(share)} for token, share in first.items()]
        choice["logprobs"] = {"content": [{"top_logprobs": top}]}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


class ChatServer:
    """Answers each request with ``reply(body, number)``: the body of a response, or its status, headers and body."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Any]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.request_queue_size = 256
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.times.append(time.time())
            self.keys.add(handler.headers.get("Authorization"))
            number = len(self.requests)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            made = self.reply(body, number)
        finally:
            with self._lock:
                self.at_once -= 1
        handler.close_connection = True
        if made is None:  # hang up
            return
        status, headers, text = made if isinstance(made, tuple) else (200, {}, made)
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(text))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)


@contextmanager
def chat_server(reply: Callable[[dict[str, Any], int], Any]) -> Iterator[ChatServer]:
    server = ChatServer(reply)
    server.start()
    try:
        yield server
    finally:
        server.stop()
