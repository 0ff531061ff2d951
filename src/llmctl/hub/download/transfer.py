"""The transfer of files from the Hub to the disk: parallel, resumable, checked, and stopped at once on request.

Every attempt asks the Hub again, because the signed address that it redirects to expires. The token goes to the Hub's
own origin and never to where it redirects. A file is put in place only if its hash matches the listed one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from llmctl.errors import RemoteError, UnreachableError
from llmctl.hub import settings
from llmctl.hub.cache.paths import OURS
from llmctl.hub.download import xet
from llmctl.hub.download.partial import Partial
from llmctl.hub.download.progress import Progress
from llmctl.hub.http import NotJsonError, Patience, headers, reason, requested_pause, session, timeout, tls_error
from llmctl.hub.http_library import http_library
from llmctl.hub.listing import RemoteFile

if TYPE_CHECKING:
    import httpx2

CHUNK_BYTES = 1 << 20  # written and hashed at once: large enough that other threads can run in the meantime
WRITE_SECONDS = 0.2  # longest time between writes on a slow connection, so that a kill loses little
_REDIRECTS = 10
_GRACE_SECONDS = 0.2  # time for the workers to notice the stop


@dataclass(frozen=True)
class Job:
    """One blob to fetch.

    Attributes:
        file: File to fetch. Other paths may have the same content; they share the blob.
        url: Address on the Hub at a fixed commit.
        blob: Path of the blob.
        placed: Callback for when the blob is in place.
    """

    file: RemoteFile
    url: str
    blob: Path
    placed: Callable[[], None]


class _Stopped(Exception):  # noqa: N818 (not an error)
    """The transfer is being stopped; raised inside a worker."""


class _Refusal(Exception):  # noqa: N818 (not an error yet)
    """A response after which another attempt may succeed."""

    def __init__(self, response: "httpx2.Response", why: str) -> None:
        super().__init__(why)
        self.response, self.why = response, why


class Transfer:
    """The transfer of a set of blobs. Workers share its state: the queue, the stop event, the first error."""

    def __init__(self, jobs: Sequence[Job], *, progress: Progress, patience: Patience, workers: int) -> None:
        self._queue = deque(sorted(jobs, key=lambda job: -job.file.size_bytes))
        self._progress, self._patience = progress, patience
        self._workers = max(1, min(workers, len(jobs)))
        self._stop, self._done = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._running = 0
        self._error: BaseException | None = None
        self._with_token, self._without_token = headers(), headers(False)
        self._xet = xet.is_usable()

    def run(self) -> None:
        """Fetch everything, or raise the first error. Partial files are kept on the disk in either case."""
        self._running = self._workers
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            while not self._done.wait(1.0):
                pass
        finally:
            self._stop.set()
            if self._xet and any(thread.is_alive() for thread in threads):
                xet.abort()
            deadline = time.monotonic() + _GRACE_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error

    # -- workers

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    job = self._queue.popleft()
                except IndexError:
                    break
                self._fetch(job)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 (handed to the thread that waits)
            with self._lock:
                self._error = self._error or error
            self._done.set()
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._done.set()

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _fetch(self, job: Job) -> None:
        """Fetch and check one blob; once more from the beginning if it was damaged on the way."""
        partial = Partial(job.blob, job.file, raise_if_stopped=self._raise_if_stopped)
        try:
            for last in (False, True):
                self._fill(job, partial)
                if partial.is_right:
                    partial.place()
                    job.placed()
                    self._progress.finished(job.file.path, job.file.size_bytes)
                    return
                self._progress.advance(job.file.path, -partial.start_over())
                self._xet = False
                if not last:
                    self._progress.note(f"{job.file.path} arrived damaged, fetching it again")
        finally:
            partial.close()
        partial.path.unlink(missing_ok=True)
        raise RemoteError(
            f"{job.file.path} arrived damaged twice: its {job.file.algorithm} is not the one that the Hub lists",
            hint="a proxy or a disk that alters files? try another network, or look at the log of the disk",
            details={"path": job.file.path, "expected": job.file.digest},
        )

    def _fill(self, job: Job, partial: Partial) -> None:
        """Repeat attempts until all bytes have arrived. Only attempts without any bytes count as failures."""
        httpx = http_library()

        failures, best = 0, partial.size_bytes
        while not partial.is_complete:
            self._raise_if_stopped()
            pause: float | None = None
            error: Exception | None = None
            try:
                self._attempt(job, partial)
                why = "the answer was too short"
            except _Refusal as refusal:
                error, why = refusal, refusal.why
                pause = requested_pause(refusal.response)
                if refusal.response.status_code == 416 and failures:
                    self._progress.advance(job.file.path, -partial.start_over())
            except httpx.TransportError as broken:
                if isinstance(broken, httpx.ProxyError) or tls_error(broken) is not None:
                    raise
                error, why = broken, _broken(broken)
            if partial.size_bytes > best:
                failures, best = 0, partial.size_bytes
                continue
            failures += 1
            if failures >= self._patience.attempts or (pause or 0) > self._patience.longest_requested_seconds:
                raise self._given_up(job, error)
            self._pause(job, why, pause if pause is not None else self._patience.pause(failures))

    def _pause(self, job: Job, why: str, seconds: float) -> None:
        wait = f"waiting {seconds:.0f} s" if seconds >= 1 else "trying again"
        self._progress.note(f"{job.file.path}: {why}, {wait}")
        if self._stop.wait(seconds):
            raise _Stopped

    def _given_up(self, job: Job, error: Exception | None) -> Exception:
        from huggingface_hub.utils import hf_raise_for_status

        if isinstance(error, _Refusal):
            try:
                hf_raise_for_status(error.response)
            except Exception as known:  # noqa: BLE001 (it becomes the reason in the message)
                return known
        if isinstance(error, Exception) and not isinstance(error, _Refusal):
            return error
        return UnreachableError(
            f"{job.file.path} is incomplete: the server sends no more bytes of it",
            hint="run the same command again; what arrived is kept",
        )

    # -- one attempt

    def _attempt(self, job: Job, partial: Partial) -> None:
        """Make one request and write the bytes that arrive."""
        with self._open(job, partial.size_bytes) as response:
            if isinstance(response, xet.Offer):
                self._by_xet(job, partial, response)
                return
            if response.status_code == 200 and partial.size_bytes:
                self._progress.advance(job.file.path, -partial.start_over())
            self._take(job, partial, response.iter_raw())

    def _take(self, job: Job, partial: Partial, pieces: Iterator[bytes]) -> None:
        """Write a body in large pieces, at least every `WRITE_SECONDS`; write all received bytes on errors."""
        waiting: list[bytes] = []
        size, due = 0, time.monotonic() + WRITE_SECONDS
        try:
            for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                if size < CHUNK_BYTES and time.monotonic() < due:
                    continue
                self._raise_if_stopped()
                self._progress.advance(job.file.path, partial.write(b"".join(waiting)))
                waiting, size, due = [], 0, time.monotonic() + WRITE_SECONDS
                if partial.is_complete:
                    return
        finally:
            if waiting and not self._stop.is_set():
                self._progress.advance(job.file.path, partial.write(b"".join(waiting)))

    @contextmanager
    def _open(self, job: Job, start: int) -> "Iterator[httpx2.Response | xet.Offer]":
        """Open the response that carries the bytes from `start` on, following redirects."""
        url = job.url
        for _ in range(_REDIRECTS):
            is_hub = settings.is_hub(url)
            request_headers = {**(self._with_token if is_hub else self._without_token), "Accept-Encoding": "identity"}
            if start:
                request_headers["Range"] = f"bytes={start}-"
            client = session()
            request = client.build_request("GET", url, headers=request_headers, timeout=timeout())
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                offer = xet.offer(response) if self._xet and start == 0 else None
                if offer is not None:
                    yield offer
                    return
                if not response.has_redirect_location:
                    self._check(response, start, is_hub=is_hub)
                    yield response
                    return
                url = urljoin(url, response.headers["Location"])
            finally:
                response.close()
        raise UnreachableError(f"{urlsplit(job.url).hostname} redirects {job.file.path} in a circle")

    def _check(self, response: "httpx2.Response", start: int, *, is_hub: bool) -> None:
        """Check that the response is the file, starting at the requested byte."""
        from huggingface_hub.utils import hf_raise_for_status

        status = response.status_code
        if is_hub and (status in (401, 404) or (status == 403 and "X-Error-Code" in response.headers)):
            response.read()
            hf_raise_for_status(response)
        if status not in (200, 206):
            response.read()
            expired = not is_hub and status in (401, 403)
            raise _Refusal(response, "the signed address has expired" if expired else reason(response))
        if response.headers.get("Content-Type", "").startswith("text/html") and not response.url.path.endswith("html"):
            raise NotJsonError(response)
        begins = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        if status == 206 and begins != str(start):
            raise _Refusal(response, "the response begins at another byte")

    def _by_xet(self, job: Job, partial: Partial, offer: xet.Offer) -> None:
        """Fetch the whole file through Xet; if that fails, use HTTP for the rest of this transfer."""
        received = 0
        beside = partial.path.with_name(f"{job.blob.name}{OURS}xet.incomplete")  # not written in order

        def arrived(count: int) -> None:
            nonlocal received
            received += count
            self._progress.advance(job.file.path, count)

        try:
            xet.fetch(offer, beside, job.file, headers=self._with_token, arrived=arrived)
            partial.adopt(beside)
        except Exception as error:  # noqa: BLE001 (hf_xet raises any exception of its Rust code; HTTP is the fallback)
            self._raise_if_stopped()
            self._xet = False
            self._progress.note(f"{job.file.path}: Xet failed ({type(error).__name__}), going on by HTTP")
            beside.unlink(missing_ok=True)
            partial.start_over()
        self._progress.advance(job.file.path, partial.size_bytes - received)


def _broken(error: Exception) -> str:
    httpx = http_library()

    if isinstance(error, httpx.TimeoutException):
        return f"no byte for {settings.timeout_seconds():g} s"
    if isinstance(error, httpx.ConnectError):
        return "cannot connect"
    return "the connection broke"
