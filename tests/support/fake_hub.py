"""A hub on loopback: serves the files of a folder, as one commit of one repository, and counts.

It answers what huggingface_hub asks of a hub: the list of files with sizes and hashes, a file's own metadata (HEAD), a
whole file, and a range of one.  The tests run with HF_HUB_OFFLINE=1; while a hub is served, the process may reach it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL_ID = "some-owner/some.model"


@dataclass
class FakeHub:
    """The files to serve and the ways to misbehave; tests set the fields, the server fills `requests`."""

    folder: Path
    endpoint: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, file, bytes sent), for files that exist."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, authorization) of every request."""
    break_after_bytes: list[int] = field(default_factory=list)
    """Each entry makes one answer stop after that number of bytes."""
    ignores_ranges: bool = False
    status: int | None = None
    """Answer everything with this status."""
    listing: bytes = b""
    """Answer with this to a request for the list of files."""
    storage_endpoint: str | None = None
    """Redirect shards to this other server, as a hub does."""

    def bytes_sent(self, suffix: str = "") -> int:
        return sum(sent for _, name, sent in self.requests if name.endswith(suffix))


def published_hash(path: Path) -> str:
    """The SHA-256 of a shard, which a hub stores as a large file; git's own id of any other file."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listing_of(folder: Path) -> dict[str, Any]:
    """The hub's answer to a question for all files of the repository, with their metadata."""
    files = []
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        file: dict[str, Any] = {"rfilename": path.name, "size": size, "blobId": "0" * 40}
        if path.suffix == ".safetensors":
            file["lfs"] = {"sha256": published_hash(path), "size": size, "pointerSize": 135}
        else:
            file["blobId"] = published_hash(path)
        files.append(file)
    return {"id": MODEL_ID, "sha": COMMIT, "siblings": files, "private": False, "tags": [], "downloads": 0, "likes": 0}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            hub.asked.append((self.path, self.headers.get("Authorization")))
            path, _, _ = self.path.partition("?")
            prefix, _, name = path.rpartition("/")
            if hub.status is not None:
                self._refuse(hub.status)
            elif prefix == f"/api/models/{MODEL_ID}/revision":
                self._send_listing(name)
            elif prefix not in (f"/{MODEL_ID}/resolve/main", f"/{MODEL_ID}/resolve/{COMMIT}"):
                self._refuse(401, "RepoNotFound")
            elif not (hub.folder / name).is_file():
                self._refuse(404, "EntryNotFound")
            else:
                self._send_file(hub.folder / name)

        def _refuse(self, status: int, code: str | None = None) -> None:
            self._send_head(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

        def _send_listing(self, revision: str) -> None:
            if revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
                return
            body = hub.listing or json.dumps(listing_of(hub.folder)).encode()
            self._send_head(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
            self.wfile.write(body)

        def _send_file(self, path: Path) -> None:
            content = path.read_bytes()
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{published_hash(path)}"',
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


def _offline_client() -> httpx2.Client:
    """The session that HF_HUB_OFFLINE=1 asks for."""

    def refuse(request: httpx2.Request) -> None:
        raise OfflineModeIsEnabled(f"cannot reach {request.url}")

    return httpx2.Client(event_hooks={"request": [refuse]})


@contextmanager
def serve_hub(folder: Path) -> Iterator[FakeHub]:
    """A running hub on a port of the system's choosing."""
    hub = FakeHub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    set_client_factory(lambda: httpx2.Client(follow_redirects=True))
    try:
        yield hub
    finally:
        set_client_factory(_offline_client)
        server.shutdown()
        thread.join()
        server.server_close()
