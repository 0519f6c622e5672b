"""A stand-in for the Hugging Face Hub on localhost, so that the code that loads from the Hub runs for real.

It serves `ROOT/datasets/<owner>/<name>/<files>` and `ROOT/models/<owner>/<name>/<files>` under the Hub's HTTP
routes; revisions other than main are in `<name>@<revision>`. It can answer the first requests with 503, or
truncate files. Models can be listed by their tags, and written (tests/helpers/hub_models.py).
"""

import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from helpers.hub_models import TOKEN, ModelRoutes, read_tags

NAME = r"([^/]+/[^/]+)"
REVISION = r"(refs/(?:convert|pr)/[^/]+|[^/]+)"  # after decoding: clients send refs/… with and without %2F


class HubMirror:
    """A context manager that runs the server in a thread. `requests` has the paths of the files requested,
    and `api/models` for each page of a list of models, which has `page_size` of them.

    The first `fail_first` file requests get a 503; longer files are cut off after `truncate` bytes.
    """

    def __init__(self, root: Path, fail_first: int = 0, truncate: int = 0, page_size: int = 1000):
        self.root, self.fail_first, self.truncate = root.resolve(), fail_first, truncate
        self.page_size, self.n_writes = page_size, 0
        self.requests: list[str] = []
        self.commits: dict[str, str] = {}  # commit → revision
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubMirror":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, revision: str) -> str:
        content = f"{revision} {self.n_writes}".encode()
        commit = revision if revision in self.commits else hashlib.sha1(content).hexdigest()
        self.commits.setdefault(commit, revision)
        return commit

    def folder(self, kind: str, name: str, revision: str | None) -> Path | str:
        """The folder of a repository at a revision, or the Hub's error code."""
        revision = self.commits.get(revision, revision or "main")
        folder = self.root / kind / (name if revision == "main" else f"{name}@{revision}")
        if not (self.root / kind / name).is_dir():
            return "RepoNotFound"
        return folder if folder.is_dir() else "RevisionNotFound"


class _Handler(ModelRoutes, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubMirror

    def log_message(self, *_):
        pass

    def reply(self, code, body=b"", headers=None, content_length=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if content_length is None else content_length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, headers=None, code=200):
        self.reply(code, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def refuse(self, code, message, **others):
        self.reply_json({"error": message} | others, {"X-Error-Message": message}, code)

    def not_found(self, code="EntryNotFound"):
        self.reply(404, b'{"error":"not found"}', {"X-Error-Code": code, "Content-Type": "application/json"})

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.route(body)

    def do_GET(self):
        self.route(b"")

    def route(self, body):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        query = urllib.parse.parse_qs(url.query)
        if self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return self.refuse(401, "Invalid credentials in Authorization header")
        if answer := {
            "/api/models": self.list_models,
            "/api/repos/create": self.create,
            "/api/validate-yaml": self.validate_card,
        }.get(path):
            return answer(body=body, query=query)
        if match := re.fullmatch(r"/api/models/([^/]+)", path):
            return self.redirect_to_owner(match[1])
        for pattern, answer in (
            (rf"/api/(models)/{NAME}/preupload/{REVISION}", self.preupload),
            (rf"/api/(models)/{NAME}/commit/{REVISION}", self.write_commit),
            (rf"/api/(datasets|models)/{NAME}(?:/revision/{REVISION})?", self.repository),
            (rf"/api/(datasets|models)/{NAME}/tree/{REVISION}(?:/(.*))?", self.tree),
            (rf"/api/(datasets|models)/{NAME}/paths-info/{REVISION}", self.paths),
            (rf"/(datasets/)?{NAME}/resolve/{REVISION}/(.+)", self.file),
        ):
            if match := re.fullmatch(pattern, path):
                kind, name, revision, *rest = match.groups()
                kind = (kind or "models").strip("/")
                folder = self.hub.folder(kind, name, revision)
                if isinstance(folder, str):
                    return self.not_found(folder)
                return answer(folder, name, revision or "main", *rest, body=body, query=query)
        return self.not_found()

    def repository(self, folder, name, revision, **_):
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix()}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        now, commit = "2024-01-01T00:00:00.000Z", self.hub.commit(revision)
        dates = {"lastModified": now, "createdAt": now}
        others = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        ids = {"_id": commit[:24], "id": name, "sha": commit, "tags": read_tags(folder)}
        self.reply_json(ids | dates | others | {"siblings": siblings})

    def entry(self, folder, path):
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        return {"type": kind, "oid": "0" * 40, "size": size, "path": path.relative_to(folder).as_posix()}

    def tree(self, folder, name, revision, top, query, **_):
        top = folder / (top or "")
        if not top.is_dir():
            return self.not_found()
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        paths = sorted(top.rglob("*") if recursive else top.iterdir())
        return self.reply_json([self.entry(folder, path) for path in paths])

    def paths(self, folder, name, revision, body, **_):
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        self.reply_json([self.entry(folder, folder / path) for path in paths if (folder / path).exists()])

    def file(self, folder, name, revision, path, **_):
        file = folder / path
        if not file.is_file():
            return self.not_found()
        self.hub.requests.append(f"{name}/{path}")
        if self.hub.fail_first > 0:
            self.hub.fail_first -= 1
            return self.reply(503, b"try again")
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit(revision),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if self.command == "HEAD":
            return self.reply(200, b"", headers, content_length=len(content))
        code, body = 200, content
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            code, body = 206, content[first : last + 1]
        if self.hub.truncate and len(body) > self.hub.truncate:
            self.close_connection = True
            return self.reply(code, body[: self.hub.truncate], headers, content_length=len(body))
        return self.reply(code, body, headers)
