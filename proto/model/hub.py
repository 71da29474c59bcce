"""A model on a Hugging Face hub: only the wanted byte ranges are fetched, and kept as small safetensors files.

huggingface_hub finds the repository, its files, their sizes and hashes, and downloads the small ones; so HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE, logins and proxies work as its users know them.  It has no way to fetch a part of a file: the
one function that does (`_pieces_of_one_answer`) uses its session, its headers and its errors.

The files lie in CACHE/OWNER--NAME/COMMIT/: the small files as they are, "block-0017.safetensors" per block and
"ends.safetensors", each with the hash of its tensors beside it.  A file is checked against that once per process before
it is used.  Everything of one checkpoint comes from one commit, whatever the branch does meanwhile.  What the hub said
of a revision is kept, too (`fetched.py`), so that a machine that has all it needs starts while the hub is away.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are in its __all__, made at run time
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
    tqdm,
)

from ..errors import RetryElsewhere, SwarmError, UsageError
from .fetched import FetchedFiles, Listing, RemoteFile, header_of, remember, remembered, write_fetched
from .folder import CONFIG_FILE, MAX_SMALL_FILE_BYTES, HeldTensor, Progress, TensorInfo, cache_root, check_served
from .hashes import FileHashes, hash_file

logger = logging.getLogger(__name__)

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SMALL_FILES = ("generation_config.json",)
_LIBRARY = "blockswarm"
_DISK_HINT = "Free space, ask for fewer blocks, or move the cache with XDG_CACHE_HOME."

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class HubTiming:
    """How a hub is waited for."""

    timeout_seconds: float = 30.0
    """Wait for a connection, and for the next bytes of an answer."""
    attempts: int = 4
    """Tries without any progress before a request is given up."""
    first_attempts: int = 2
    """The same for the first question: its name may be that of a folder that is not here."""
    first_pause_seconds: float = 2.0
    """Pause after the first failed try; every further one is twice as long."""


class HubOffline(UsageError):
    """The user wants no requests to a hub."""


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
        cache_limit_bytes: int | None = None,
        timing: HubTiming | None = None,
        wait: Callable[[float], None] = time.sleep,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        if not _MODEL_ID.fullmatch(model_id):
            raise UsageError(
                f"{model_id[:200]!r} is neither a folder here nor a model on a hub",
                hint="Give the folder of a model, or owner/name.",
            )
        self._model_id = model_id
        self._timing = timing or HubTiming()
        self._wait = wait
        self._free_bytes = free_bytes
        self._api = HfApi(endpoint=endpoint.rstrip("/") if endpoint else None, library_name=_LIBRARY)
        self._held: dict[str, Mapping[str, HeldTensor]] = {}
        self._fetched = FetchedFiles(cache_root(cache_folder), cache_limit_bytes)
        self._cache = cache_root(cache_folder) / model_id.replace("/", "--")
        try:
            self._commit, self._files = self._opened(revision or "main")
        except (RetryElsewhere, HubOffline) as error:
            raise type(error)(
                f"there is no folder {model_id} here, and {error}",
                hint="Give the path of a model's folder, or check the network.",
            ) from error
        if CONFIG_FILE not in self._files:
            check_served(self._files, model_id)
            raise UsageError(f"{model_id} has no {CONFIG_FILE} at revision {revision or 'main'}")
        self.folder = self._cache / self._commit
        with self._translated_errors(f"{model_id} at {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, *_SMALL_FILES):
            self.small_file(name)
        remember(self._cache, revision or "main", Listing(self._commit, self._files))

    def small_file(self, name: str) -> bytes | None:
        if name not in self._files:
            return None
        if self._files[name].size > MAX_SMALL_FILE_BYTES:
            raise UsageError(f"{name} is larger than {MAX_SMALL_FILE_BYTES} bytes")
        return Path(self._persistently(lambda: self._download(name))).read_bytes()

    def names(self) -> Sequence[str]:
        return sorted(self._files)

    def size(self, shard: str) -> int:
        return self._existing(shard).size

    def hashes(self, shard: str, tensors: Sequence[TensorInfo], progress: Progress | None = None) -> FileHashes:
        published = self._existing(shard).sha256
        if published is not None:
            return FileHashes(published, {})
        self.small_file(shard)
        return hash_file(self.folder / shard, self.size(shard), tensors)

    def read(self, shard: str, start: int, stop: int) -> bytes:
        """Bytes of a shard's header: every start reads the same ones, so they are kept, for starts without the hub."""
        kept = self.folder / f"{shard}.{start}-{stop}"
        with self._translated_errors(f"{shard} at {self.folder}"):
            if kept.is_file() and kept.stat().st_size == stop - start:
                return kept.read_bytes()
        data = b"".join(self._pieces(shard, start, stop))
        write_fetched(kept, lambda target: target.write(data))
        return data

    def check_space(self, groups: Mapping[str, Sequence[TensorInfo]]) -> None:
        """Where the cache has a limit, files of other models may make room: then nothing is foretold."""
        missing = [tensors for group, tensors in groups.items() if not self._path_of(group).exists()]
        wanted, free = sum(tensor.nbytes for tensors in missing for tensor in tensors), self._free_bytes(self.folder)
        if wanted > free and not self._fetched.is_limited:
            raise UsageError(
                f"{len(missing)} of the blocks have to be fetched, {wanted / 2**30:.1f} GiB, and {self._cache} has"
                f" {free / 2**30:.1f} GiB free",
                hint=_DISK_HINT,
            )

    def _path_of(self, group: str) -> Path:
        return self.folder / f"{group}.safetensors"

    def hold(
        self, group: str, tensors: Sequence[TensorInfo], progress: Progress | None = None
    ) -> Mapping[str, HeldTensor]:
        if group not in self._held:
            path, total = self._path_of(group), sum(tensor.nbytes for tensor in tensors)
            held = self._fetched.use(path, tensors)
            if held is None:
                self._fetched.make_room(total)
                self._fetch(path, sorted(tensors, key=lambda tensor: (tensor.file, tensor.start)), progress)
                held = self._fetched.add(path, tensors)
            elif progress is not None:
                progress(total, total)
            self._held[group] = held
        return self._held[group]

    def let_go(self, groups: Collection[str]) -> None:
        for group in groups:
            if self._held.pop(group, None) is not None:
                self._fetched.let_go(self._path_of(group))

    def _fetch(self, path: Path, tensors: Sequence[TensorInfo], progress: Progress | None) -> None:
        """Write the tensors to a safetensors file of their own, in the order given."""
        total = sum(tensor.nbytes for tensor in tensors)
        free = self._free_bytes(self.folder)
        if total > free:
            raise UsageError(
                f"{path.name} needs {total} bytes in {self.folder}, {free} are free",
                hint=_DISK_HINT,
            )

        def write(target: IO[bytes]) -> None:
            done = 0
            target.write(header_of(tensors))
            for shard, start, stop in _runs(tensors):
                for piece in self._pieces(shard, start, stop):
                    target.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)

        write_fetched(path, write)

    def _opened(self, revision: str) -> tuple[str, Mapping[str, RemoteFile]]:
        """As `_look_up`; where the hub does not answer, what it said the last time, if that is known."""
        known = remembered(self._cache, revision)
        if known is None:
            return self._persistently(lambda: self._look_up(revision), self._timing.first_attempts)
        try:
            return self._look_up(revision)
        except (RetryElsewhere, HubOffline) as error:
            logger.warning(
                "%s: %s is used as it was at commit %s, as far as it is in %s",
                error, self._model_id, known.commit[:12], self._cache,
            )  # fmt: skip
            return known.commit, known.files

    def _look_up(self, revision: str) -> tuple[str, Mapping[str, RemoteFile]]:
        """The commit behind `revision`, and its files by name: one request."""
        with self._translated_errors(f"{self._model_id} at revision {revision}"):
            seconds = self._timing.timeout_seconds
            info = self._api.model_info(self._model_id, revision=revision, files_metadata=True, timeout=seconds)
        files = {}
        for file in info.siblings or ():
            published = (file.lfs.sha256 or "") if file.lfs else None
            if not isinstance(file.size, int) or not (published is None or _SHA256.fullmatch(published)):
                raise self._not_a_hub(f"size and hash of {file.rfilename}")
            files[file.rfilename] = RemoteFile(file.size, bytes.fromhex(published) if published else None)
        if not _COMMIT.fullmatch(info.sha or ""):
            raise self._not_a_hub(f"the commit of {self._model_id}")
        return str(info.sha), files

    def _download(self, name: str) -> str:
        """The path of a small file in `folder`, whole or not at all; no request if it is there."""
        with self._translated_errors(name):
            return hf_hub_download(
                self._model_id,
                name,
                revision=self._commit,
                local_dir=self.folder,
                endpoint=self._api.endpoint,
                library_name=_LIBRARY,
                etag_timeout=self._timing.timeout_seconds,
                tqdm_class=_NoBar,
            )

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of a file, piece by piece; goes on where a broken connection stopped."""
        failures = 0
        while start < stop:
            try:
                for piece in self._pieces_of_one_answer(name, start, stop):
                    start += len(piece)
                    failures = 0
                    yield piece
            except RetryElsewhere as error:
                failures += 1
                self._pause(failures, error)

    def _pieces_of_one_answer(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of one answer to a request for a range.

        By hand, because huggingface_hub downloads whole files only, and a peer that hosts ten blocks of eighty wants an
        eighth of them.  A redirect to another host (the hub's storage) is followed without the credentials.
        """
        url = hf_hub_url(self._model_id, name, revision=self._commit, endpoint=self._api.endpoint)
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with (
            self._translated_errors(name),
            http_stream_backoff(
                "GET",
                url,
                headers=build_hf_headers(library_name=_LIBRARY, headers=wanted),
                timeout=self._timing.timeout_seconds,
                max_retries=self._timing.attempts,
                retry_on_exceptions=(),  # what was received by then is kept: see `_pieces`
                retry_on_status_codes=(429,),  # "too many requests" says how long to wait
            ) as answer,
        ):
            hf_raise_for_status(answer)
            if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise UsageError(f"{self._api.endpoint} does not send parts of files", hint="Download the model first.")
            missing = stop - start
            for piece in answer.iter_raw():
                missing -= len(piece)
                if missing < 0:
                    raise UsageError(f"{self._api.endpoint} sends more of {name} than was asked for")
                yield piece
        if missing:
            raise RetryElsewhere(f"{self._api.endpoint} broke off while sending {name}")

    def _existing(self, name: str) -> RemoteFile:
        if name not in self._files:
            raise UsageError(f"{self._model_id} has no file {name} at commit {self._commit}")
        return self._files[name]

    def _persistently(self, request: Callable[[], _Result], attempts: int | None = None) -> _Result:
        """The result of `request`, which is tried several times. Raises what its last attempt raises."""
        failures = 0
        while True:
            try:
                return request()
            except RetryElsewhere as error:
                failures += 1
                self._pause(failures, error, attempts)

    def _pause(self, failures: int, error: RetryElsewhere, attempts: int | None = None) -> None:
        """Wait after a failed attempt. Raises `error` if it was the last one."""
        if failures >= (attempts or self._timing.attempts):
            raise error
        pause = self._timing.first_pause_seconds * 2 ** (failures - 1)
        logger.info("%s; trying again in %.0f s", error, pause)
        self._wait(pause)

    @contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Turn what huggingface_hub raises into our errors; `what` names what was asked for."""
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, HFValidationError) as error:
            raise _translate(error, what, self._api.endpoint) from error
        except (KeyError, TypeError, ValueError) as error:  # an answer that is no JSON, or of another kind
            raise self._not_a_hub(what) from error

    def _not_a_hub(self, what: str) -> UsageError:
        return UsageError(f"{self._api.endpoint} does not tell {what}", hint="Is this a Hugging Face hub?")


class _NoBar(tqdm):  # type: ignore[misc]
    """No progress bar: a small file is there at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"disable": True})


def _translate(error: Exception, what: str, endpoint: str) -> SwarmError:
    """Our error for one of huggingface_hub or of its HTTP client; `what` was asked for at `endpoint`."""
    host = urlsplit(endpoint).netloc or endpoint
    if isinstance(error, OfflineModeIsEnabled):
        return HubOffline("HF_HUB_OFFLINE is set, so nothing is fetched from a hub", hint="Give a local folder.")
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _translate(error.__cause__, what, endpoint)  # huggingface_hub looked in its cache, too
    if isinstance(error, HfHubHTTPError):
        return _translate_status(error, what, host)
    if isinstance(error, HFValidationError | httpx2.InvalidURL | httpx2.UnsupportedProtocol | FileMetadataError):
        return UsageError(f"{what} cannot be asked for at {endpoint}: {error}", hint="Is this a Hugging Face hub?")
    if isinstance(error, OSError) and error.errno is not None:  # the network's errors are not among these
        return UsageError(f"{what} cannot be kept: {error}", hint="Free space, or choose another cache.")
    if isinstance(error, httpx2.ReadError | httpx2.ReadTimeout | httpx2.RemoteProtocolError):
        return RetryElsewhere(f"{host} broke off while sending {what}: {error}", hint="Try again later.")
    return RetryElsewhere(f"{host} does not answer: {error}", hint="Check the network, or use a local folder.")


def _translate_status(error: HfHubHTTPError, what: str, host: str) -> SwarmError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError | RepositoryNotFoundError) or status in (401, 403):
        return UsageError(
            f"{what} on {host} may not be read (HTTP {status}): it does not exist, or it is private or gated",
            hint="Check the name; for a gated model accept its terms and log in with `hf auth login`.",
        )
    if status == 404:
        return UsageError(f"{what} does not exist on {host}")
    if status in (408, 429) or status >= 500:
        return RetryElsewhere(f"{host} answers with HTTP {status}", hint="Try again later.")
    return UsageError(f"{what} cannot be read from {host} (HTTP {status})")


def _runs(tensors: Sequence[TensorInfo]) -> Iterator[tuple[str, int, int]]:
    """(file, start, stop) of neighbouring tensors together: one request each."""
    runs: list[tuple[str, int, int]] = []
    for tensor in tensors:
        if runs and runs[-1][0] == tensor.file and runs[-1][2] == tensor.start:
            runs[-1] = (tensor.file, runs[-1][1], tensor.start + tensor.nbytes)
        else:
            runs.append((tensor.file, tensor.start, tensor.start + tensor.nbytes))
    return iter(runs)
