"""A stand-in for the Hub on 127.0.0.1, which answers what huggingface_hub asks: repositories, trees and files."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

LARGE = 1 << 10  # bytes from which a file is stored as the Hub stores large ones: its ETag is its SHA-256


@dataclass
class StandIn:
    """Repositories: (kind, "owner/name") -> folder of its files, or the error that it answers with."""

    repositories: dict[tuple[str, str], Path | tuple[int, str]] = field(default_factory=dict)
    at: str = ""
    fetched: list[str] = field(default_factory=list)  # files that were asked for, with the first byte
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which its connection breaks, once
    status: dict[str, int] = field(default_factory=dict)  # file -> HTTP status in place of its content
    revisions: set[str] = field(default_factory=lambda: {"main"})

    def commit(self, kind: str, name: str) -> str:
        """Return the commit of a repository, by its files."""
        folder = self.repositories[kind, name]
        return hashlib.sha1(repr(sorted(sizes(folder).items())).encode()).hexdigest()


def sizes(folder: Path) -> dict[str, int]:
    """Return the files of a repository with their sizes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextmanager
def serving() -> Iterator[StandIn]:
    """Start a stand-in; the environment of a process that asks it is `HF_ENDPOINT` = `at`."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            _answer(hub, self)

        def log_message(self, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.at = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def asking(hub: StandIn, monkeypatch) -> None:
    """Let huggingface_hub in this process ask the stand-in, and keep nothing for the next test."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.at)
    template = hub.at + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def environment(hub: StandIn, home: Path) -> dict[str, str]:
    """Return the environment of a process that asks the stand-in."""
    return {"HF_ENDPOINT": hub.at, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


def _answer(hub: StandIn, request: BaseHTTPRequestHandler) -> None:
    path = unquote(urlsplit(request.path).path)
    if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
        kind, name, what, revision = match.groups()
    elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        kind, name, revision, what = "dataset" if match[1] else "model", match[2], match[3], match[4]
    else:
        return _send(request, 404, b"", {})
    folder = hub.repositories.get((kind, name), (401, "RepoNotFound"))
    if not isinstance(folder, Path):
        return _send(request, folder[0], b"", {"X-Error-Code": folder[1]} if folder[1] else {})
    commit = hub.commit(kind, name)
    if revision not in {None, commit, *hub.revisions}:
        return _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
    if not path.startswith("/api/"):
        return _file(hub, request, folder, what, commit)
    entries = [
        {"type": "file", "path": file, "rfilename": file, "size": size, "oid": "0" * 40, "blobId": "0" * 40}
        for file, size in sizes(folder).items()
    ]
    if what == "tree":
        return _send(request, 200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
    about = {"id": name, "sha": commit, "siblings": entries, "tags": [], "private": False, "gated": False}
    card = folder / "README.md"
    if card.is_file() and card.read_text().startswith("---"):
        about["cardData"] = yaml.safe_load(card.read_text().split("---")[1])
    return _send(request, 200, json.dumps(about).encode(), {"Content-Type": "application/json"})


def _file(hub: StandIn, request: BaseHTTPRequestHandler, folder: Path, name: str, commit: str) -> None:
    file = folder / name
    if name in hub.status:
        return _send(request, hub.status[name], b"", {})
    if not file.is_file():
        return _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
    content = file.read_bytes()
    etag = (hashlib.sha256 if len(content) >= LARGE else hashlib.sha1)(content).hexdigest()
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes", "Content-Type": "text/plain"}
    if len(content) >= LARGE:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
    first, status = 0, 200
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
        first, status = int(match[1]), 206
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
    if request.command == "GET":
        hub.fetched.append(f"{name}@{first}" if first else name)
    _send(request, status, content[first:], headers, hub.cut.pop(name, None) if request.command == "GET" else None)


def _send(request, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
    request.send_response(status)
    for header in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(*header)
    request.end_headers()
    if request.command == "HEAD":
        return
    request.wfile.write(content[:cut])
    if cut is not None:  # a connection that breaks
        request.wfile.flush()
        request.connection.shutdown(2)
        request.close_connection = True
