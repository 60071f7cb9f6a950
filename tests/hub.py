"""A stand-in for the Hugging Face hub on loopback, spoken to by the hub's own library."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "abcd"


class Hub:
    """What a hub with one repository, acme/tiny, answers to `snapshot_download`, and what it was asked for."""

    def __init__(self, files: dict[str, bytes], kind: str) -> None:
        """`kind` is models or datasets."""
        self.files = files
        self.requests: list[str] = []
        self.url = ""
        self._api = f"/api/{kind}/acme/tiny"
        self._files = f"{'' if kind == 'models' else '/' + kind}/acme/tiny/resolve/{COMMIT}/"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.requests.append(path)
        path = path.partition("?")[0]
        if path in (f"{self._api}/revision/{revision}" for revision in ("main", COMMIT)):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": "acme/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        if path == f"{self._api}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        name = path.removeprefix(self._files)
        if name in self.files:
            etag = hashlib.sha1(self.files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, self.files[name]
        code = "RevisionNotFound" if path.startswith(f"{self._api}/revision/") else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b"{}"


@contextmanager
def serving(files: dict[str, bytes], kind: str = "models") -> Iterator[Hub]:
    """A hub on a free port of the loopback interface."""
    hub = Hub(files, kind)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
