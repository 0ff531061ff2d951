"""A Hugging Face Hub over loopback that can be told to fail: what the real client is tried against.

It serves model folders, `ROOT/<org>/<name>/...`, from two origins as the real Hub does: the Hub itself, and a second
one that large files are redirected to. The second answers 400 to any request that carries an Authorization header, so
a token that leaves the Hub is a failure that shows.

    with HubStandin(root) as hub:
        hub.fault(path=r"/cdn/", action="drop", after=1_000_000)
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": hub.url})
        assert [entry for entry in hub.log if entry["range"]]

`ROOT/hub.json` holds tokens and settings of repositories:

    {"tokens": {"hf_good": {"name": "alice", "role": "read"}},
     "repos": {"acme/gated": {"gated": "manual", "allow": ["alice"]},
               "acme/private": {"private": true, "allow": ["alice"]},
               "acme/huge": {"sizes": {"model.safetensors": 1000000000000000}},
               "acme/hostile": {"extra_paths": ["../../x"]}}}

Run as a program it serves until it is interrupted, and takes faults over HTTP (POST /_standin/fault).
"""

import argparse
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".msgpack", ".h5")
LFS_THRESHOLD = 10 * 1024 * 1024
DEFAULT_TOKENS = {"hf_good": {"name": "alice", "role": "read"}, "hf_other": {"name": "bob", "role": "read"}}
PIECE = 1 << 16
CUTTING = ("drop", "rst", "stall")


def digest_of(path: Path, hasher: Any) -> str:
    """Feed a file to a hasher."""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return str(hasher.hexdigest())


def git_blob_sha1(path: Path) -> str:
    """What git calls the content of a file."""
    return digest_of(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


class Repo:
    """One repository: a folder, hashed once. Its commit is a digest of its listing: another content, another commit."""

    def __init__(self, repo_id: str, folder: Path, settings: dict[str, Any]) -> None:
        self.id, self.settings = repo_id, settings
        self.files: dict[str, dict[str, Any]] = {}
        for full in sorted(p for p in folder.rglob("*") if p.is_file()):
            path, size = full.relative_to(folder).as_posix(), full.stat().st_size
            self.files[path] = {"path": path, "full": full, "size": size, "oid": git_blob_sha1(full)}
            if path.endswith(LFS_SUFFIXES) or size > LFS_THRESHOLD:
                self.files[path]["sha256"] = digest_of(full, hashlib.sha256())
        for path in settings.get("extra_paths", []):  # hostile names, with no file behind them
            self.files[path] = {"path": path, "full": Path(os.devnull), "size": 0, "oid": "0" * 40}
        for path, size in settings.get("sizes", {}).items():  # a size that is claimed and not there
            self.files[path]["size"] = size
        listing = "\n".join(f"{f['path']} {f['oid']}" for _, f in sorted(self.files.items()))
        self.commit = hashlib.sha1(f"{repo_id}\n{listing}".encode()).hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The commit of a revision, or None."""
        refs = {"main": self.commit, "refs/heads/main": self.commit, **self.settings.get("refs", {})}
        if revision in refs:
            return str(refs[revision])
        known = re.fullmatch(r"[0-9a-f]{7,40}", revision) and self.commit.startswith(revision)
        return self.commit if known else None

    def entry(self, path: str, *, key: str) -> dict[str, Any]:
        """One file as the API shows it: `key` names its path and `sha256` its LFS hash."""
        file = self.files[path]
        shown = {key: path, "size": file["size"], "blobId": file["oid"], "oid": file["oid"], "type": "file"}
        if "sha256" in file:
            sha = file["sha256"]
            shown["lfs"] = {"sha256": sha, "oid": sha, "size": file["size"], "pointerSize": 134}
            if self.settings.get("xet"):
                shown["xetHash"] = sha
        return shown


class HubStandin:
    """The two servers, what they serve, how they fail, and what was asked of them."""

    def __init__(self, root: Path | str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.root = Path(root)
        self.lock = threading.Lock()
        self.log: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.device: dict[str, int] = {}  # device code -> how often it was asked for
        self.reload()
        self.httpd = _Server((host, port), self, is_cdn=False)
        self.cdnd = _Server((host, 0), self, is_cdn=True)
        self.url = f"http://{host}:{self.httpd.server_address[1]}"
        self.cdn_url = f"http://{host}:{self.cdnd.server_address[1]}"

    def reload(self) -> None:
        """Read the folders and hub.json again."""
        file = self.root / "hub.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        self.tokens: dict[str, dict[str, Any]] = settings.get("tokens", DEFAULT_TOKENS)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Path] = {}
        for folder in sorted(self.root.glob("*/*")):
            if folder.is_dir():
                repo_id = folder.relative_to(self.root).as_posix()
                repo = Repo(repo_id, folder, settings.get("repos", {}).get(repo_id, {}))
                self.repos[repo_id] = repo
                self.blobs |= {f["sha256"]: f["full"] for f in repo.files.values() if "sha256" in f}

    def fault(self, path: str = ".*", action: str = "status", *, times: int = 1, skip: int = 0, **more: Any) -> None:
        """Fail on requests whose path matches: `times` of them (-1: always) after `skip`.

        Paths on the second origin begin with `cdn:`. Actions: status (status, headers), hang (seconds), refuse (rst),
        html, drop, rst and stall (after: bytes; seconds), corrupt (at: byte), short (by: bytes), ignore_range,
        no_length, throttle (rate: bytes a second).
        """
        with self.lock:
            self.faults.append({"path": path, "action": action, "times": times, "skip": skip, **more})

    def clear(self) -> None:
        """Forget faults and log."""
        with self.lock:
            self.faults.clear()
            self.log.clear()

    def asked(self, pattern: str, method: str | None = None) -> list[dict[str, Any]]:
        """The requests whose path matches, oldest first."""
        with self.lock:
            found = [e for e in self.log if re.search(pattern, e["path"])]
        return [e for e in found if method in (None, e["method"])]

    def leaks(self) -> list[dict[str, Any]]:
        """The requests that carried a token to the second origin."""
        with self.lock:
            return [e for e in self.log if e["cdn"] and e["auth"]]

    def take_fault(self, method: str, path: str) -> dict[str, Any] | None:
        """The fault for this request, if there is one, counted."""
        with self.lock:
            for fault in self.faults:
                if fault["times"] == 0 or fault.get("method") not in (None, method):
                    continue
                if not re.search(fault["path"], path):
                    continue
                if fault["skip"] > 0:
                    fault["skip"] -= 1
                    continue
                fault["times"] -= fault["times"] > 0
                return fault
        return None

    def __enter__(self) -> "HubStandin":
        for server in (self.httpd, self.cdnd):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in (self.httpd, self.cdnd):
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], standin: HubStandin, *, is_cdn: bool) -> None:
        super().__init__(address, _Handler)
        self.standin, self.is_cdn = standin, is_cdn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none of our errors."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hub-standin/2"
    server: _Server
    disable_nagle_algorithm = True

    # -- plumbing

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the log is a list."""

    @property
    def hub(self) -> HubStandin:
        return self.server.standin

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        self.method = method
        url = urlsplit(self.path)
        self.asked_path, self.query = unquote(url.path), parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        self.entry: dict[str, Any] = {
            "t": time.time(),
            "cdn": self.server.is_cdn,
            "method": method,
            "path": self.path,
            "range": self.headers.get("Range"),
            "auth": bool(self.headers.get("Authorization")),
            "status": None,
            "sent": 0,
            "fault": None,
        }
        if self.asked_path.startswith("/_standin/"):
            return self._control()
        with self.hub.lock:
            self.hub.log.append(self.entry)
        self.rule = self.hub.take_fault(method, ("cdn:" if self.server.is_cdn else "") + self.path) or {}
        if self.rule:
            self.entry["fault"] = self.rule["action"]
            if self._fails_at_once():
                return None
        if self.server.is_cdn:
            return self._second_origin()
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.asked_path)
            if match:
                return answer(self, *match.groups())
        return self._error(404, None, "Sorry, we can't find the page you are looking for.")

    def _fails_at_once(self) -> bool:
        """Do what the fault says before any answer; False where it touches only the body."""
        action = self.rule["action"]
        if action == "status":
            headers = self.rule.get("headers")
            self._error(self.rule.get("status", 500), self.rule.get("code"), "injected", headers)
        elif action == "hang":
            time.sleep(self.rule.get("seconds", 60))
            self.close_connection = True
        elif action == "refuse":
            self._abort(rst=self.rule.get("rst", False))
        elif action == "html":
            self._send(200, b"<html>Please log in to the WiFi</html>", "text/html")
        else:
            return False
        return True

    def _abort(self, *, rst: bool) -> None:
        self.close_connection = True
        if rst:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.wfile.flush()
            if not rst:
                self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _send(
        self,
        status: int,
        body: Any,
        content_type: str = "application/json; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self._head(status, {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})})
        if self.method != "HEAD":
            self.wfile.write(body)
            self.entry["sent"] = len(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.entry["status"] = status
        self.send_response(status)
        self.send_header("X-Request-Id", f"Root=standin-{len(self.hub.log)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _error(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        """The Hub's way to refuse: two headers (all that a HEAD has) and a JSON body."""
        more = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, {"error": message}, headers=more)

    # -- who asks, and what may they see

    def _user(self) -> tuple[dict[str, Any] | None, bool]:
        """The user, None for an anonymous one; and whether the token, if one was sent, is known."""
        header = self.headers.get("Authorization")
        if not header:
            return None, True
        user = self.hub.tokens.get(header.removeprefix("Bearer ").strip())
        return user, user is not None

    def _repo(self, repo_id: str, *, content: bool = False) -> Repo | None:
        """The repository, or None after an error was sent. `content`: bytes of files, so gating applies."""
        user, known = self._user()
        if not known:
            self._error(401, None, "Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get(repo_id)
        allowed = bool(user and repo and user["name"] in repo.settings.get("allow", []))
        if repo is None or (repo.settings.get("private") and not allowed):
            if user is None:
                self._error(401, "RepoNotFound", "Invalid username or password.")
            else:
                self._error(404, "RepoNotFound", "Repository not found")
            return None
        if repo.settings.get("disabled"):
            self._error(403, None, "Access to this resource is disabled.")
            return None
        return repo if not content or self._may_read(repo, user, allowed=allowed) else None

    def _may_read(self, repo: Repo, user: dict[str, Any] | None, *, allowed: bool) -> bool:
        restricted = repo.settings.get("gated") or repo.settings.get("private")
        narrow = user is not None and user.get("role") == "fineGrained"
        if user and narrow and restricted and not user.get("fineGrained", {}).get("canReadGatedRepos"):
            self._error(403, None, "Please enable access to public gated repositories in your token settings")
            return False
        if not repo.settings.get("gated") or allowed:
            return True
        if user is None:
            self._error(401, "GatedRepo", f"Access to model {repo.id} is restricted. Please log in.")
        else:
            self._error(403, "GatedRepo", f"Access to model {repo.id} is restricted: not in the authorized list.")
        return False

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.resolve(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # -- the API

    def whoami(self) -> None:
        user, known = self._user()
        if not known or user is None:
            return self._error(401, None, "Invalid username or password.")
        token = {"displayName": user.get("token_name", f"{user['name']}-token"), "role": user.get("role", "read")}
        if "fineGrained" in user:
            token["fineGrained"] = user["fineGrained"]
        return self._send(
            200,
            {
                "type": "user",
                "id": hashlib.sha1(user["name"].encode()).hexdigest()[:24],
                "name": user["name"],
                "fullname": user["name"].title(),
                "email": f"{user['name']}@example.invalid",
                "orgs": [{"name": name} for name in user.get("orgs", [])],
                "auth": {"type": "access_token", "accessToken": token},
            },
        )

    def model_info(self, repo_id: str, revision: str = "main") -> None:
        repo = self._repo(repo_id)
        commit = self._commit(repo, revision) if repo else None
        if repo is None or commit is None:
            return
        names = sorted(repo.files)
        blobs = "blobs" in self.query
        config: dict[str, Any] = {}
        if "config.json" in repo.files:
            with suppress(ValueError):
                config = json.loads(repo.files["config.json"]["full"].read_text())
        info = {
            "_id": commit[:24],
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": bool(repo.settings.get("private")),
            "gated": repo.settings.get("gated", False),
            "disabled": bool(repo.settings.get("disabled")),
            "downloads": 0,
            "likes": 0,
            "tags": ["safetensors", *repo.settings.get("tags", [])],
            "cardData": repo.settings.get("card"),
            "pipeline_tag": "text-generation",
            "library_name": "transformers",
            "config": config,
            "siblings": [repo.entry(n, key="rfilename") if blobs else {"rfilename": n} for n in names],
            "usedStorage": sum(f["size"] for f in repo.files.values()),
            "safetensors": repo.settings.get("safetensors"),
        }
        if "expand" in self.query:
            keep = {"_id", "id", "modelId", *self.query["expand"]}
            info = {key: value for key, value in info.items() if key in keep}
        self._send(200, {key: value for key, value in info.items() if value is not None})

    def tree(self, repo_id: str, revision: str, _sub: str = "") -> None:
        repo = self._repo(repo_id)
        if repo and self._commit(repo, revision):
            self._send(200, [repo.entry(name, key="path") for name in sorted(repo.files)])

    def paths_info(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        if repo is None or self._commit(repo, revision) is None:
            return
        is_json = "json" in self.headers.get("Content-Type", "")
        fields = json.loads(self.body) if is_json else parse_qs(self.body.decode())
        wanted = fields.get("paths", [])
        names = [wanted] if isinstance(wanted, str) else wanted
        self._send(200, [repo.entry(name, key="path") for name in names if name in repo.files])

    def refs(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        if repo:
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}
            self._send(200, {"branches": [main], "tags": [], "converts": [], "pullRequests": []})

    def commits(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        if repo and self._commit(repo, revision):
            date = "2026-01-01T00:00:00.000Z"
            self._send(200, [{"id": repo.commit, "title": "init", "message": "", "authors": [], "date": date}])

    def auth_check(self, repo_id: str) -> None:
        if self._repo(repo_id, content=True):
            self._send(200, {})

    def discussions(self, repo_id: str) -> None:
        if self._repo(repo_id):
            self._send(200, {"discussions": [], "count": 0, "start": 0, "numClosedDiscussions": 0})

    def no_xet(self, *_: str) -> None:
        self._error(404, None, "Xet is not enabled on this server")

    def empty(self, *_: str) -> None:
        self._send(200, {})

    def oauth_device(self) -> None:
        code = hashlib.sha1(os.urandom(8)).hexdigest()
        self.hub.device[code] = 0
        page = f"{self.hub.url}/device"
        shown = {"user_code": "ABCD-EFGH", "verification_uri": page, "verification_uri_complete": f"{page}?code=ABCD"}
        self._send(200, {"device_code": code, **shown, "expires_in": 30, "interval": 1})

    def oauth_token(self) -> None:
        fields = {key: values[0] for key, values in parse_qs(self.body.decode()).items()}
        code = fields.get("device_code", "")
        if code not in self.hub.device:
            return self._send(400, {"error": "invalid_grant"})
        self.hub.device[code] += 1
        if self.hub.device[code] < 2:
            return self._send(400, {"error": "authorization_pending"})
        return self._send(200, {"access_token": next(iter(self.hub.tokens)), "token_type": "bearer"})

    # -- files

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        found = self._find(repo_id, revision, path)
        if found is None:
            return None
        repo, commit, file = found
        base = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{file["oid"]}"', "Content-Length": "0"}
        base["X-Linked-Size"] = str(file["size"])
        if "sha256" not in file:  # small: the real Hub answers with a relative redirect on the same host
            location = f"/api/resolve-cache/models/{repo_id}/{commit}/{quote(path)}"
            return self._head(307, {**base, "Location": location})
        sha = file["sha256"]
        if repo.settings.get("xet"):
            base["X-Xet-Hash"] = sha
            base["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/models/{repo_id}/xet-read-token/{commit}"
        location = f"{self.hub.cdn_url}/cdn/{sha}?sig={time.time_ns()}"
        return self._head(302, {**base, "Location": location, "X-Linked-ETag": f'"{sha}"'})

    def resolve_cache(self, repo_id: str, revision: str, path: str) -> None:
        found = self._find(repo_id, revision, path)
        if found is not None:
            _, commit, file = found
            self._file(file["full"], f'"{file["oid"]}"', {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"})

    def _find(self, repo_id: str, revision: str, path: str) -> tuple[Repo, str, dict[str, Any]] | None:
        repo = self._repo(repo_id, content=True)
        commit = self._commit(repo, revision) if repo else None
        if repo is None or commit is None:
            return None
        file = repo.files.get(path)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return None
        return repo, commit, file

    def _second_origin(self) -> None:
        match = re.fullmatch(r"/cdn/([0-9a-f]{64})", self.asked_path)
        if self.headers.get("Authorization"):
            return self._error(400, None, "Only one auth mechanism allowed")
        if match is None or match[1] not in self.hub.blobs:
            return self._error(404, None, "no such object")
        return self._file(self.hub.blobs[match[1]], f'"{match[1]}"', {"Accept-Ranges": "bytes"})

    def _file(self, full: Path, etag: str, headers: Mapping[str, str]) -> None:
        action = self.rule.get("action")
        size = full.stat().st_size
        start, end = self._range(size)
        if start is None:
            return self._error(416, None, "Requested range not satisfiable", {"Content-Range": f"bytes */{size}"})
        length = end - start
        if action == "short":  # a whole answer that is shorter than the file, and says so
            length = max(length - self.rule.get("by", 1000), 0)
        partly = start > 0 or end < size
        head = {**headers, "ETag": etag, "Content-Type": "application/octet-stream", "Content-Length": str(length)}
        if partly:
            head["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        if action == "no_length":
            del head["Content-Length"]
            head["Connection"] = "close"
            self.close_connection = True
        self._head(206 if partly else 200, head)
        if self.method == "HEAD":
            return None
        return self._body(full, start, length)

    def _range(self, size: int) -> tuple[int | None, int]:
        """The bytes asked for: first, and one behind the last; None for what cannot be had."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", (self.headers.get("Range") or "").strip())
        if match is None or self.rule.get("action") == "ignore_range" or not (match[1] or match[2]):
            return 0, size
        if not match[1]:
            return max(size - int(match[2]), 0), size
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        return (None, 0) if start >= end else (start, end)

    def _body(self, full: Path, start: int, length: int) -> None:
        action = self.rule.get("action")
        stop = min(self.rule.get("after", length) if action in CUTTING else length, length)
        rate = self.rule.get("rate") if action == "throttle" else None
        bad = self.rule.get("at", 4096) if action == "corrupt" else None
        with full.open("rb") as file:
            if rate is None and bad is None:
                self._send_fast(file, start, stop)
            else:
                self._send_slowly(file, start, stop, rate=rate, bad=bad)
        if stop < length:
            if action == "stall":
                time.sleep(self.rule.get("seconds", 60))
            self._abort(rst=action == "rst")

    def _send_fast(self, file: Any, start: int, length: int) -> None:
        self.wfile.flush()
        sent = 0
        while sent < length:
            count = os.sendfile(self.connection.fileno(), file.fileno(), start + sent, min(1 << 20, length - sent))
            if count == 0:
                break
            sent += count
            self.entry["sent"] = sent

    def _send_slowly(self, file: Any, start: int, length: int, *, rate: int | None, bad: int | None) -> None:
        file.seek(start)
        sent = 0
        while sent < length:
            piece = file.read(min(PIECE if rate is None else max(rate // 10, 1), length - sent))
            if not piece:
                break
            if bad is not None and start + sent <= bad < start + sent + len(piece):
                at = bad - start - sent
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            self.wfile.write(piece)
            sent += len(piece)
            self.entry["sent"] = sent
            if rate:
                time.sleep(0.1)

    # -- control over HTTP, for a stand-in that runs as a program

    def _control(self) -> None:
        if self.asked_path == "/_standin/log":
            with self.hub.lock:
                return self._send(200, self.hub.log)
        if self.asked_path == "/_standin/fault" and self.method == "POST":
            self.hub.fault(**json.loads(self.body))
            return self._send(200, {"ok": True})
        if self.asked_path == "/_standin/reset" and self.method == "POST":
            self.hub.clear()
            self.hub.reload()
            return self._send(200, {"ok": True})
        return self._send(404, {"error": "no such control"})


_ID = r"([^/]+/[^/]+)"
_REVISION = r"(refs/[^/]+/[^/]+|[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (rf"/api/models/{_ID}/revision/(.+)", _Handler.model_info),
    (rf"/api/models/{_ID}/tree/{_REVISION}(/.*)?", _Handler.tree),
    (rf"/api/models/{_ID}/paths-info/(.+)", _Handler.paths_info),
    (rf"/api/models/{_ID}/auth-check", _Handler.auth_check),
    (rf"/api/models/{_ID}/discussions", _Handler.discussions),
    (rf"/api/models/{_ID}/refs", _Handler.refs),
    (rf"/api/models/{_ID}/commits/(.+)", _Handler.commits),
    (rf"/api/models/{_ID}/xet-read-token/(.+)", _Handler.no_xet),
    (rf"/api/models/{_ID}", _Handler.model_info),
    (rf"/api/resolve-cache/models/{_ID}/([0-9a-f]{{40}})/(.+)", _Handler.resolve_cache),
    (r"/oauth/device", _Handler.oauth_device),
    (r"/oauth/token", _Handler.oauth_token),
    (r"/api/agent-harnesses", _Handler.empty),
    (r"/api/telemetry/.*", _Handler.empty),
    (rf"/{_ID}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with HubStandin(arguments.root, port=arguments.port) as hub:
        sys.stdout.write(f"HF_ENDPOINT={hub.url}  repositories: {', '.join(hub.repos)}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
