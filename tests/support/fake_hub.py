"""A hub on loopback: serves the files of a folder by ranges, as one commit of one repository, and counts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL_ID = "some-owner/some.model"


@dataclass
class FakeHub:
    """What to serve and how to misbehave; tests set the fields, the server fills `requests`."""

    folder: Path
    endpoint: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, file, bytes sent), for files that exist."""
    authorizations: list[str | None] = field(default_factory=list)
    break_after_bytes: list[int] = field(default_factory=list)
    """Each entry makes one answer stop after so many bytes."""
    ignores_ranges: bool = False
    status: int | None = None
    """Answer everything with this status."""
    storage_endpoint: str | None = None
    """Redirect shards to this other server, as a hub does."""

    def bytes_sent(self, suffix: str = "") -> int:
        return sum(sent for _, name, sent in self.requests if name.endswith(suffix))


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            hub.authorizations.append(self.headers.get("Authorization"))
            prefix, _, name = self.path.rpartition("/")
            path = hub.folder / name
            if hub.status is not None:
                self._send_head(hub.status, {"Content-Length": "0"})
            elif prefix not in (f"/{MODEL_ID}/resolve/main", f"/{MODEL_ID}/resolve/{COMMIT}") or not path.is_file():
                self._send_head(404, {"Content-Length": "0"})
            else:
                self._send_file(path)

        def _send_file(self, path: Path) -> None:
            content = path.read_bytes()
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Content-Length": str(len(content)),
            }
            if hub.storage_endpoint and path.suffix == ".safetensors":
                headers |= {"X-Linked-ETag": headers.pop("ETag"), "X-Linked-Size": headers["Content-Length"]}
                headers |= {"Location": hub.storage_endpoint + self.path, "Content-Length": "0"}
                self._send_head(302, headers)
                return
            status, body = 200, content
            if "Range" in self.headers and not hub.ignores_ranges:
                start, stop = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
                status, body = 206, content[start : stop + 1]
                headers |= {"Content-Range": f"bytes {start}-{stop}/{len(content)}", "Content-Length": str(len(body))}
            self._send_head(status, headers)
            if self.command == "HEAD":
                body = b""
            elif path.suffix == ".safetensors" and hub.break_after_bytes:
                body = body[: hub.break_after_bytes.pop(0)]
                self.close_connection = True
            hub.requests.append((self.command, path.name, len(body)))
            self.wfile.write(body)

        def _send_head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

    return Handler


@contextmanager
def serve_hub(folder: Path) -> Iterator[FakeHub]:
    """A running hub on a port of the system's choosing."""
    hub = FakeHub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
