"""A stand-in for an OpenAI-compatible server, on a real socket of this machine: good replies, and every bad one."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Act = Callable[["Handler"], None]
Script = Callable[[Body, int], Act]
"""What to do with a chat request; the number counts chat requests from 0."""

KEY = "sk-very-secret-0123456789"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets: 40 ms a reply otherwise
    server: "StandIn"

    def do_GET(self) -> None:
        self.server.listings += 1
        data = [{"id": name, "object": "model"} for name in self.server.models]
        self.reply(200, json.dumps({"object": "list", "data": data}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.chats)
            self.server.chats.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            self.server.script(body, number)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def reply(
        self, code: int, content: bytes, *, length: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Script, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.models = ["tiny"]
        self.chats: list[Body] = []
        self.keys: list[str | None] = []
        self.listings = 0
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(script: Script) -> Iterator[StandIn]:
    server = StandIn(script)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str | None, **choice: Any) -> Body:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def say(text: str | None, **choice: Any) -> Act:
    return send(completion(text, **choice))


def say_slowly(text: str, seconds: float) -> Act:
    def act(handler: Handler) -> None:
        time.sleep(seconds)
        say(text)(handler)

    return act


def send(body: Any) -> Act:
    return lambda handler: handler.reply(200, json.dumps(body).encode())


def send_bytes(content: bytes) -> Act:
    return lambda handler: handler.reply(200, content)


def fail(code: int, message: str = "no", **headers: str) -> Act:
    return lambda handler: handler.reply(code, json.dumps({"error": {"message": message}}).encode(), headers=headers)


def half(handler: Handler) -> None:
    content = json.dumps(completion("5")).encode()
    handler.reply(200, content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def endless(handler: Handler) -> None:
    handler.reply(200, b'{"choices": [', length=10**15)
    while True:
        handler.wfile.write(b" " * 65536)


def endless_error(handler: Handler) -> None:
    handler.reply(500, b"x", length=10**15)
    while True:
        handler.wfile.write(b"x" * 65536)


def dripping(handler: Handler) -> None:
    """A byte now and then: no read ever times out."""
    handler.reply(200, b"{", length=10**6)
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def compressed(handler: Handler) -> None:
    handler.reply(200, b"\x1f\x8b" + bytes(100), headers={"Content-Encoding": "gzip"})


FAULTS: dict[str, Act] = {
    "HTTP 429": fail(429, "slow down", Retry_After="0"),
    "HTTP 500": fail(500),
    "HTTP 503": fail(503),
    "HTTP 502": lambda handler: handler.reply(502, b"[" * 10**6),
    "connection closed": half,
    "connection closed, too": hang_up,
    "reply larger than 8 MiB": endless,
    "reply larger than 8 MiB, too": endless_error,
    "no reply within": dripping,
    "compressed reply": compressed,
    "reply that is no chat completion": send_bytes(b"<html>nonsense</html>"),
    "reply that is no chat completion, 2": send_bytes(b'{"choices": [{"mess'),
    "reply that is no chat completion, 3": send({"choices": []}),
    "reply that is no chat completion, 4": send({"error": {"message": "in a 200"}}),
    "reply that is no chat completion, 5": send({"choices": "five"}),
    "reply that is no chat completion, 6": send([1, 2]),
    "reply that is no chat completion, 7": send_bytes(b""),
    "reply that is no chat completion, 8": send_bytes(b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "reply that is no chat completion, 9": send({"choices": [{"message": {"content": 5}}]}),
    "reply that is no chat completion, 10": send_bytes(b"[" * 10**6),
}
