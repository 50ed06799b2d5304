"""A Hugging Face Hub on this machine: real HTTP on the loopback, for the real client of `huggingface_hub`.

Tests take the fixture `hub` (a [`LocalHub`]). Inside a test the whole process talks to it and nothing else: no code of
the test needs an endpoint, a cache folder or a token. Child processes get `env=hub.environment()`.

>>> commit = hub.add_repo("me/model", {"config.json": "{}"})  # doctest: +SKIP
>>> hub.files("me/model", commit)  # doctest: +SKIP
{'config.json': b'{}'}
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from tests.support.card_rules import faults_of_card

USER, TOKEN = "me", "hf_token_of_the_local_hub"
_DATE = "2026-01-01T00:00:00.000Z"
_SHA = re.compile(r"[0-9a-f]{40}\Z")
_ACTIONS = ("revision", "tree", "refs", "commits", "paths-info", "preupload", "commit", "branch", "tag", "settings")


@dataclass(frozen=True)
class Request:
    """One request as the server saw it: `str(request)` is such as `"GET /me/model/resolve/main/config.json"`."""

    method: str
    path: str
    body: bytes
    status: int

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Repository:
    """A repository: every commit keeps all of its files, and branches and tags name commits."""

    repo_id: str
    repo_type: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """The commit that a revision names."""
        if _SHA.match(revision):
            return revision if revision in self.commits else None
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.branches.get(name) or self.tags.get(name) or self.branches.get(revision)

    def commit(self, branch: str, files: Mapping[str, bytes], title: str) -> str:
        """Adds a commit with these files, and none other, at the head of a branch."""
        parent = self.branches.get(branch)
        text = repr(
            (
                self.repo_id,
                self.repo_type,
                len(self.commits),
                sorted((name, _blob(data)) for name, data in files.items()),
                title,
            )
        )
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.titles[sha], self.parents[sha] = dict(files), title, parent
        self.branches[branch] = sha
        return sha

    def size(self, path: str, data: bytes) -> int:
        """What the server says that a file has."""
        return self.sizes.get(path, len(data))


class LocalHub:
    """The server, and what tests ask of it.

    Attributes:
        endpoint (`str`): such as `"http://127.0.0.1:40001"`.
        token (`str`): of the user `me`; private repositories and every write need it.
        requests (`list[Request]`): all requests so far, in their order.
        cache (`Path`): the cache folder of the client.
    """

    token = TOKEN

    def __init__(self, home: Path) -> None:
        self.home, self.cache = home, home / "hub"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[LocalHub]:
        """Answers requests inside."""
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str] | str | os.PathLike[str],
        *,
        repo_type: str = "model",
        revision: str = "main",
        title: str = "by the test",
        private: bool = False,
        gated: bool = False,
        sizes: Mapping[str, int] | None = None,
    ) -> str:
        """A new commit of a repository, which is made if it is not there yet.

        Args:
            repo_id (`str`), repo_type (`str`), revision (`str`): a branch; it moves to the new commit.
            files (`Mapping` or path): by path, or a folder. They replace all files of the former commit. Any name is
                taken, also one that no client would send.
            private (`bool`), gated (`bool`): who may read it.
            sizes (`Mapping[str, int]`, *optional*): what the server says that a file has, if that is not true.

        Returns:
            `str`: the commit.
        """
        if not isinstance(files, Mapping):
            root = Path(files)
            files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _files_of(root)}
        found = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        with self.lock:
            repository = self.repositories.setdefault((repo_type, repo_id), Repository(repo_id, repo_type))
            repository.private, repository.gated = private, gated
            repository.sizes.update(sizes or {})
            return repository.commit(revision, found, title)

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """A repository, with its commits, branches and tags."""
        return self.repositories[repo_type, repo_id]

    def commit(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> str:
        """The commit that a revision names."""
        found = self.repository(repo_id, repo_type).find(revision)
        assert found is not None, f"{repo_id} has no revision {revision}"
        return found

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """All files at a revision."""
        return dict(self.repository(repo_id, repo_type).commits[self.commit(repo_id, revision, repo_type)])

    def downloads(self, repo_id: str | None = None) -> list[str]:
        """The files whose content was sent so far, of one repository or of all."""
        found = [(_RESOLVE.match(request.path), request) for request in self.requests]
        return [
            unquote(match["path"])
            for match, request in found
            if match and request.method == "GET" and repo_id in (None, match["repo"])
        ]

    def pushed(self) -> bytes:
        """All that clients have sent to be kept: names, messages and contents of files, decoded."""
        parts = []
        for request in self.requests:
            if request.method != "POST" or "/api/validate-yaml" in request.path:
                continue
            parts.append(unquote(request.path).encode())
            for line in request.body.splitlines() if "/commit/" in request.path else [request.body]:
                parts.append(line)
                with suppress(ValueError, KeyError, TypeError):
                    parts.append(base64.b64decode(json.loads(line)["value"]["content"]))
        return b"\n".join(parts)

    def environment(self) -> dict[str, str]:
        """The environment of child processes that talk to this Hub."""
        return {**os.environ, **self.variables()}

    def variables(self) -> dict[str, str]:
        """What the client reads from the environment."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.cache),
            "HF_DATASETS_CACHE": str(self.home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # else transformers asks a service of the Hub for files
            "NO_PROXY": "127.0.0.1",
        }


def connect(hub: LocalHub, monkeypatch: Any) -> None:
    """Turns this process to a local Hub: what `huggingface_hub`, transformers and datasets read when imported."""
    import transformers.utils.hub
    from huggingface_hub import constants, hf_api, repocard

    for name, value in hub.variables().items():
        monkeypatch.setenv(name, value)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(hub.cache),
        "HF_HOME": str(hub.home),
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)  # some names are newer than our lowest version
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setattr(repocard, "get_session", lambda: _CardSession(hub.endpoint))


class _CardSession:
    """What validates cards; its address is a constant in our lowest version of `huggingface_hub`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def post(self, url: str, **options: Any) -> Any:
        from huggingface_hub.utils import get_session

        return get_session().post(url.replace("https://huggingface.co", self.endpoint), **options)


@contextmanager
def connected_datasets(hub: LocalHub) -> Iterator[None]:
    """The same for `datasets`, which may be imported for the first time inside."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False}
    own["HF_DATASETS_CACHE"] = hub.home / "datasets"
    own["HUB_DATASETS_URL"] = hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    former = {"HF_ENDPOINT": "https://huggingface.co", "HF_HUB_OFFLINE": True, "HF_DATASETS_OFFLINE": True}
    former["HF_DATASETS_CACHE"] = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "datasets"
    former["HUB_DATASETS_URL"] = "https://huggingface.co/datasets/{repo_id}/resolve/{revision}/{path}"
    if config := sys.modules.get("datasets.config"):
        former = {name: getattr(config, name) for name in own}
        vars(config).update(own)
    try:
        yield
    finally:
        if config := sys.modules.get("datasets.config"):
            vars(config).update(former)


_RESOLVE = re.compile(
    r"/(?:(?P<type>datasets|spaces)/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)\Z"
)


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that leaves in the middle
            super().handle()

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        parts = self.path.strip("/").split("/")
        with self.hub.lock:
            if match := _RESOLVE.match(self.path):
                self._resolve(match)
            elif parts[:2] == ["api", "repos"]:
                self._create() if self.command == "POST" else self._delete()
            elif parts[:2] == ["api", "whoami-v2"]:
                self._whoami()
            elif parts[:2] == ["api", "validate-yaml"]:
                self._validate()
            elif parts[0] == "api" and parts[1] in ("models", "datasets", "spaces") and len(parts) > 2:
                self._of_repository(parts[1].removesuffix("s"), parts[2:])
            elif self.path == "/":
                self._send(200, b"")
            else:
                self._fail(404, "", "Sorry, we can't find the page you are looking for.")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # -- answers ------------------------------------------------------------------------------------------

    def _send(self, status: int, content: bytes | dict[str, Any] | list[Any], **headers: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.requests.append(Request(self.command, self.path, self.body, status))
        self.send_response(status)
        lengths = {"Content-Length": len(data), **headers}
        for name, value in lengths.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, code: str, message: str, **headers: Any) -> None:
        self._send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    # -- users and repositories ---------------------------------------------------------------------------

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _whoami(self) -> None:
        if not self._is_known:
            return self._fail(401, "", "Invalid credentials in Authorization header")
        auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write", "createdAt": _DATE}}
        self._send(200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth})

    def _validate(self) -> None:
        faults = faults_of_card(str(json.loads(self.body)["content"]))
        self._send(400 if faults else 200, {"errors": [{"message": fault} for fault in faults], "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        kind = asked.get("type") or "model"
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if not self._is_known:
            return self._fail(401, "", "Invalid username or password.")
        if (kind, repo_id) in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo", "url": url, "name": repo_id})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.repositories[kind, repo_id] = Repository(repo_id, kind, private)
        repository.commit("main", {}, "initial commit")
        self._send(200, {"url": url, "name": repo_id, "id": "1"})

    def _delete(self) -> None:
        asked = json.loads(self.body)
        key = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        found = self.hub.repositories.pop(key, None) if self._is_known else None
        self._send(200, {}) if found else self._fail(404, "RepoNotFound", "Repository not found")

    def _of_repository(self, kind: str, parts: list[str]) -> None:
        at = 1 if len(parts) == 1 or parts[1] in _ACTIONS else 2
        repository = self._readable(kind, "/".join(parts[:at]))
        if repository is None:
            return
        action, *rest = [*map(unquote, parts[at:]), "", ""]
        if self.command in ("POST", "DELETE") and action not in ("paths-info",) and not self._is_known:
            return self._fail(401, "", "Invalid username or password.")
        if action in ("branch", "tag"):
            return self._name(repository, action, rest[0])
        if action == "refs":
            return self._refs(repository)
        if action == "settings":
            repository.private = json.loads(self.body).get("private", repository.private)
            return self._send(200, {})
        commit = repository.find(rest[0] or "main")
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {rest[0]}")
        if action in ("", "revision"):
            self._info(repository, commit)
        elif action == "tree":
            self._tree(repository, commit, "/".join(part for part in rest[1:] if part))
        elif action == "commits":
            self._commits(repository, commit)
        elif action == "paths-info":
            self._paths_info(repository, commit)
        elif action == "preupload":
            self._preupload(repository, commit)
        elif action == "commit" and self.command == "POST":
            self._commit(repository, rest[0], commit)
        else:
            self._fail(404, "", "no such page")

    def _readable(self, kind: str, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, unquote(repo_id)))
        if repository is None or (repository.private and not self._is_known):
            message = "Repository not found" if self._is_known else "Invalid username or password."
            self._fail(404 if self._is_known else 401, "RepoNotFound", message)
            return None
        return repository

    # -- reading ------------------------------------------------------------------------------------------

    def _info(self, repository: Repository, commit: str) -> None:
        files = repository.commits[commit]
        card: Any = {}
        with suppress(yaml.YAMLError, IndexError, UnicodeDecodeError):
            card = yaml.safe_load(files.get("README.md", b"").decode().split("---\n")[1]) or {}
        card = card if isinstance(card, dict) else {}
        siblings = [
            {"rfilename": path, "size": repository.size(path, data), "blobId": _blob(data)}
            for path, data in sorted(files.items())
        ]
        self._send(200, {
            "_id": "1", "id": repository.repo_id, "modelId": repository.repo_id, "author": USER, "sha": commit,
            "private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False,
            "downloads": 0, "likes": 0, "lastModified": _DATE, "createdAt": _DATE, "siblings": siblings,
            "tags": card.get("tags") or [], "cardData": card,
        })  # fmt: skip

    def _tree(self, repository: Repository, commit: str, folder: str) -> None:
        files = repository.commits[commit]
        inside = {path: data for path, data in files.items() if not folder or path.startswith(folder + "/")}
        if folder and not inside:
            return self._fail(404, "EntryNotFound", f"{folder} does not exist")
        is_recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for path, data in sorted(inside.items()):
            below = path[len(folder) + 1 :] if folder else path
            steps = below.split("/")
            for depth in range(1, len(steps) if is_recursive else min(len(steps), 2)):
                folders.add("/".join([*([folder] if folder else []), *steps[:depth]]))
            if is_recursive or len(steps) == 1:
                entries.append(_entry(repository, path, data))
        entries += [{"type": "directory", "path": name, "oid": _blob(name.encode()), "size": 0} for name in folders]
        self._send(200, sorted(entries, key=lambda entry: entry["path"]))

    def _paths_info(self, repository: Repository, commit: str) -> None:
        text = self.body.decode()
        asked = json.loads(text) if text.startswith("{") else parse_qs(text)
        files, found = repository.commits[commit], []
        for path in asked.get("paths", []):
            if path in files:
                found.append(_entry(repository, path, files[path]))
            elif any(name.startswith(path.strip("/") + "/") for name in files):
                found.append({"type": "directory", "path": path, "oid": _blob(path.encode()), "size": 0})
        self._send(200, found)

    def _commits(self, repository: Repository, commit: str | None) -> None:
        found = []
        while commit is not None:
            found.append(
                {"id": commit, "title": repository.titles[commit], "message": "", "date": _DATE, "authors": []}
            )
            commit = repository.parents[commit]
        self._send(200, found)

    def _refs(self, repository: Repository) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repository.branches.items()
            if not name.startswith("refs/pr/")
        ]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
        requests = [
            {"name": name.removeprefix("refs/pr/"), "ref": name, "targetCommit": commit}
            for name, commit in repository.branches.items()
            if name.startswith("refs/pr/")
        ]
        self._send(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": requests})

    def _resolve(self, match: re.Match[str]) -> None:
        repository = self._readable((match["type"] or "models").removesuffix("s"), match["repo"])
        if repository is None:
            return
        if repository.gated and not self._is_known:
            return self._fail(401, "GatedRepo", f"Access to model {repository.repo_id} is restricted.")
        commit = repository.find(unquote(match["revision"]))
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        path = unquote(match["path"])
        data = repository.commits[commit].get(path)
        if data is None:
            return self._fail(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        headers = {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        begin = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range") or "")
        if self.command == "HEAD":
            headers["Content-Length"] = repository.size(path, data)
        elif begin:
            first = int(begin[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[first:], **headers)
        self._send(200, data, **headers)

    # -- writing ------------------------------------------------------------------------------------------

    def _name(self, repository: Repository, kind: str, name: str) -> None:
        names = repository.branches if kind == "branch" else repository.tags
        asked = json.loads(self.body or b"{}")
        if self.command == "DELETE":
            names.pop(name, None)
            return self._send(200, {})
        # a tag's commit is in the path and its name in the body; a branch's name is in the path
        start = repository.find((asked.get("startingPoint") if kind == "branch" else name) or "main")
        wanted = name if kind == "branch" else asked["tag"]
        if start is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if wanted in names:
            return self._fail(409, "", f"Reference {wanted} exists already")
        names[wanted] = start
        self._send(200, {})

    def _preupload(self, repository: Repository, commit: str) -> None:
        files = repository.commits[commit]
        self._send(200, {"files": [
            {
                "path": entry["path"], "uploadMode": "regular", "shouldIgnore": False,
                "oid": _blob(files[entry["path"]]) if entry["path"] in files else None,
            }
            for entry in json.loads(self.body)["files"]
        ]})  # fmt: skip

    def _commit(self, repository: Repository, branch: str, commit: str) -> None:
        files, title, parent = dict(repository.commits[commit]), "", None
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title, parent = value["summary"], value.get("parentCommit")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        if parent is not None and parent != commit:
            return self._fail(412, "", "A commit has happened since. Please refresh and try again.")
        url = f"{self.hub.endpoint}/{'' if repository.repo_type == 'model' else repository.repo_type + 's/'}"
        answer: dict[str, Any] = {"success": True}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            repository.branches[branch] = commit
            answer["pullRequestUrl"] = f"{url}{repository.repo_id}/discussions/{number}"
        new = repository.commit(branch, files, title)
        self._send(200, {**answer, "commitUrl": f"{url}{repository.repo_id}/commit/{new}", "commitOid": new})


def _entry(repository: Repository, path: str, data: bytes) -> dict[str, Any]:
    last = {"id": next(reversed(repository.commits)), "title": "", "date": _DATE}
    return {"type": "file", "path": path, "oid": _blob(data), "size": repository.size(path, data), "lastCommit": last}


def _blob(data: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())
