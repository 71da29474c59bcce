"""A model on a Hugging Face hub: only the wanted byte ranges are fetched, and kept as small safetensors files.

The files lie in CACHE/OWNER--NAME/COMMIT/: the small files as they are, "block-0017.safetensors" per block and
"ends.safetensors", each with its SHA-256 beside it.  A file is checked against that once per process before it is
used.  Everything of one checkpoint comes from one commit, whatever the branch does meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from ..errors import RetryElsewhere, SwarmError, UsageError
from .folder import CONFIG_FILE, MAX_SMALL_FILE_BYTES, SINGLE_SHARD, HeldTensor, Progress, TensorInfo, parse_header

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL_FILES = ("generation_config.json",)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PIECE_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 4
"""Tries without any progress before a download is given up."""


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """What the hub says of a file."""

    size: int
    content_hash: str
    commit: str


class HubSource:
    """A repository on a hub, at the commit that `revision` meant when it was opened.

    `wait` is called with the seconds to wait before another attempt. Raises UsageError or RetryElsewhere.
    """

    def __init__(
        self,
        model_id: str,
        *,
        revision: str | None = None,
        endpoint: str | None = None,
        cache_folder: Path | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if not _MODEL_ID.fullmatch(model_id):
            raise UsageError(
                f"{model_id[:200]!r} is neither a folder here nor a model on a hub",
                hint="Give the folder of a model, or owner/name.",
            )
        self._wait = wait
        self._base_url, self._token = f"{(endpoint or _default_endpoint()).rstrip('/')}/{model_id}", _token()
        self._revision = revision or "main"
        self._files: dict[str, _RemoteFile | None] = {}
        self._held: dict[str, Mapping[str, HeldTensor]] = {}
        config = self._file(CONFIG_FILE)
        if config is None:
            raise UsageError(f"{model_id} has no {CONFIG_FILE} at revision {self._revision}")
        self._revision = config.commit
        root = cache_folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockswarm"
        self.folder = root / model_id.replace("/", "--") / config.commit
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, *_SMALL_FILES):
            self.small_file(name)

    def small_file(self, name: str) -> bytes | None:
        path = self.folder / name
        if path.is_file():
            return path.read_bytes()
        file = self._file(name)
        if file is None:
            return None
        if file.size > MAX_SMALL_FILE_BYTES:
            raise UsageError(f"{name} is larger than {MAX_SMALL_FILE_BYTES} bytes")
        content = self.read(name, 0, file.size)
        _write_atomically(path, lambda target: target.write(content))
        return content

    def names(self) -> Sequence[str]:
        """Only of the files that matter where there is no index."""
        return [name for name in (SINGLE_SHARD, *_PICKLES) if self._file(name) is not None]

    def size(self, shard: str) -> int:
        return self._existing(shard).size

    def published_hash(self, shard: str) -> str | None:
        return self._existing(shard).content_hash

    def read(self, shard: str, start: int, stop: int) -> bytes:
        return b"".join(self._pieces(shard, start, stop))

    def hold(
        self, group: str, tensors: Sequence[TensorInfo], progress: Progress | None = None
    ) -> Mapping[str, HeldTensor]:
        if group not in self._held:
            path = self.folder / f"{group}.safetensors"
            if not _is_intact(path):
                self._fetch(path, sorted(tensors, key=lambda tensor: (tensor.file, tensor.start)), progress)
            self._held[group] = _held_in(path)
        return self._held[group]

    def _fetch(self, path: Path, tensors: Sequence[TensorInfo], progress: Progress | None) -> None:
        """Write the tensors to a safetensors file of their own, in the order given, and its SHA-256 beside it."""
        total = sum(tensor.nbytes for tensor in tensors)
        free = shutil.disk_usage(self.folder).free
        if total > free:
            raise UsageError(f"{path.name} needs {total} bytes in {self.folder}, {free} are free")
        digest = hashlib.sha256()

        def write(target: IO[bytes]) -> None:
            done = 0
            header = _header(tensors)
            digest.update(header)
            target.write(header)
            for shard, start, stop in _runs(tensors):
                for piece in self._pieces(shard, start, stop):
                    digest.update(piece)
                    target.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)

        _write_atomically(path, write)
        _write_atomically(_sha256_path(path), lambda target: target.write(digest.hexdigest().encode()))

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file, piece by piece; goes on where a broken connection stopped."""
        attempts = 0
        while start < stop:
            try:
                for piece in self._pieces_of_one_answer(name, start, stop):
                    start += len(piece)
                    attempts = 0
                    yield piece
            except RetryElsewhere:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise
                self._wait(2.0**attempts)

    def _pieces_of_one_answer(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        with self._open("GET", name, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            range_given = answer.headers.get("Content-Range", "")
            if answer.status != 206 or not range_given.startswith(f"bytes {start}-"):
                raise UsageError(f"{self._base_url} does not send parts of files", hint="Download the model first.")
            missing = stop - start
            while missing:
                try:
                    piece = answer.read(min(_PIECE_BYTES, missing))
                except (OSError, HTTPException) as error:
                    raise RetryElsewhere(f"the download of {name} broke off: {error}") from error
                if not piece:
                    raise RetryElsewhere(f"the download of {name} broke off")
                missing -= len(piece)
                yield piece

    def _existing(self, name: str) -> _RemoteFile:
        file = self._file(name)
        if file is None:
            raise UsageError(f"{self._base_url} has no file {name}")
        return file

    def _file(self, name: str) -> _RemoteFile | None:
        """What the hub says of a file, None if it has none of that name; asked once."""
        if name not in self._files:
            self._files[name] = self._ask(name)
        return self._files[name]

    def _ask(self, name: str) -> _RemoteFile | None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._open("HEAD", name, {"Accept-Encoding": "identity"}) as answer:
                    return _parse_remote_file(name, answer.headers)
            except _NotFound:
                return None
            except RetryElsewhere:
                if attempt == _ATTEMPTS:
                    raise
                self._wait(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _open(self, method: str, name: str, headers: Mapping[str, str]) -> Any:
        """An open HTTP answer, of the hub itself for HEAD. Raises _NotFound, UsageError, RetryElsewhere."""
        url = f"{self._base_url}/resolve/{quote(self._revision, safe='')}/{quote(name)}"
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(url, method=method, headers={**headers, **authorization})
        try:
            return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if method == "HEAD" and 300 <= error.code < 400:
                return error  # a file in the hub's storage: the hub's own answer says what it is
            error.close()
            raise _translate(error.code, url) from error
        except (OSError, HTTPException) as error:
            raise RetryElsewhere(
                f"{urlsplit(url).netloc} does not answer: {error}", hint="Check the network, or use a local folder."
            ) from error


class _NotFound(UsageError):
    """The hub has no such file, revision or repository."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but shows credentials to no other host, and leaves HEAD at the hub."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        other_host = urlsplit(urljoin(req.full_url, newurl)).netloc != urlsplit(req.full_url).netloc
        if other_host and req.get_method() == "HEAD":
            return None
        redirected = urllib.request.Request(newurl, method=req.get_method(), headers=dict(req.headers))
        if other_host:
            redirected.remove_header("Authorization")
        return redirected


def _translate(status: int, url: str) -> SwarmError:
    if status == 404:
        return _NotFound(f"{url} does not exist")
    if status in (401, 403):
        return UsageError(
            f"{url} may not be read (HTTP {status}): it does not exist, or it is private or gated",
            hint="Check the name; for a gated model accept its terms and log in with `hf auth login`.",
        )
    if status == 429 or status >= 500:
        return RetryElsewhere(f"{urlsplit(url).netloc} answers with HTTP {status}", hint="Try again later.")
    return UsageError(f"{url} cannot be read (HTTP {status})")


def _parse_remote_file(name: str, headers: Any) -> _RemoteFile:
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    content_hash = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    commit = headers.get("X-Repo-Commit") or ""
    if not (size.isdecimal() and re.fullmatch(r"[0-9a-f]{40,64}", content_hash) and _COMMIT.fullmatch(commit)):
        raise UsageError(f"the hub does not say size, hash and commit of {name}", hint="Is this a Hugging Face hub?")
    return _RemoteFile(int(size), content_hash, commit)


def _runs(tensors: Sequence[TensorInfo]) -> Iterator[tuple[str, int, int]]:
    """(file, start, stop) of neighbouring tensors together: one request each."""
    runs: list[tuple[str, int, int]] = []
    for tensor in tensors:
        if runs and runs[-1][0] == tensor.file and runs[-1][2] == tensor.start:
            runs[-1] = (tensor.file, runs[-1][1], tensor.start + tensor.nbytes)
        else:
            runs.append((tensor.file, tensor.start, tensor.start + tensor.nbytes))
    return iter(runs)


def _header(tensors: Sequence[TensorInfo]) -> bytes:
    """The length and the JSON header of a safetensors file that holds the tensors one after the other."""
    entries: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _held_in(path: Path) -> Mapping[str, HeldTensor]:
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        tensors = parse_header(path.name, path.stat().st_size, read)
    return {tensor.name: HeldTensor(path, tensor.start) for tensor in tensors}


def _is_intact(path: Path) -> bool:
    """Whether the file is there and has the SHA-256 that is written beside it."""
    try:
        expected = _sha256_path(path).read_text(encoding="ascii")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == expected
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _sha256_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """The file appears whole or not at all. Raises UsageError if it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as target:
            try:
                write(target)
                target.close()
                os.replace(target.name, path)
            except BaseException:
                target.close()
                os.unlink(target.name)
                raise
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", hint="Free space, or choose another cache."
        ) from error


def _default_endpoint() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing is fetched from a hub", hint="Give a local folder.")
    endpoint: str = constants.ENDPOINT
    return endpoint


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
