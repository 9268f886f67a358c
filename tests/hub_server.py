"""A small hub on 127.0.0.1, in a process of its own, that speaks the routes which huggingface_hub uses for models:

api/models/{id}/revision/{rev}, api/models/{id}/tree/{rev}, {id}/resolve/{rev}/{file}, and a second port, the store for
large files, to which resolve sends (another origin, as the real hub's). It can be told to fail in the hub's ways.

hub = Hub(tmp_path); hub.put("someone/tiny", folder); hub.told(cut=5_000_000); hub.asked("GET")
Tests talk to it in subprocesses alone: sockets stay blocked in the test's own process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # in git LFS, as the hub's .gitattributes has it
PIECE = 2**13


class Hub:
    """The server's process, seen from a test.

    put:    publish a folder as the newest commit of a repository, and give the commit.
    told:   how to fail from now on; without arguments not at all. status: HTTP status of everything. wait_s: before an
            answer. store_wait_s: before each piece of a large file. cut: a large file's connection ends after so many
            bytes, `cuts` times. spoilt: files whose bytes differ. no_range: Range is ignored. html: a login page.
            listed: further file names. sizes: of files, as they are listed. retry_after: seconds, beside the status.
    asked:  what was asked since the last `told`: method, path, range, token, port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hub-server"
        self.folder.mkdir(parents=True)
        self.state: dict[str, Any] = {"repositories": {}, "faults": {}, "told": 0}
        self._write()
        command = [sys.executable, __file__, str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ports = json.loads(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.ports[0]}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def put(self, name: str, folder: Path, *, branch: str = "main", **about: Any) -> str:
        """about: gated, True for any token, "token" for that one; private, likewise."""
        digest = hashlib.sha1(name.encode())
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
        commit = digest.hexdigest()
        repository = self.state["repositories"].setdefault(name, {"branches": {}, "commits": {}})
        repository["branches"][branch] = commit
        repository["commits"][commit] = str(folder)
        repository.update(about)
        self._write()
        return commit

    def told(self, **faults: Any) -> None:
        self.state["faults"], self.state["told"] = faults, self.state["told"] + 1
        self._write()

    def asked(self, *methods: str) -> list[dict[str, Any]]:
        log = self.folder / f"asked-{self.state['told']}.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines]
        return [each for each in found if not methods or each["method"] in methods]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Of a subprocess that is to ask this hub, and keep what it gets in `home`."""
        rest = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "TRANSFORMERS_OFFLINE"}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        limits = {"HF_HUB_ETAG_TIMEOUT": "100", "HF_HUB_DOWNLOAD_TIMEOUT": "100"}  # a busy machine is no fault
        return {**rest, **own, **limits, "XDG_CONFIG_HOME": str(home / "config"), **more}

    def _write(self) -> None:
        temp = self.folder / "state.new"
        temp.write_text(json.dumps(self.state), "utf-8")
        temp.replace(self.folder / "state.json")


# --- The server's process ----------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """One request. `server.folder` holds the state, which is read anew each time."""

    protocol_version = "HTTP/1.1"
    folder: Path
    store = ""  # the URL of the second port
    cut: dict[str, int] = {}  # noqa: RUF012  # how often each file was cut since `told`
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal: see `_note`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.state = json.loads((self.folder / "state.json").read_text("utf-8"))
        self.faults = self.state["faults"]
        self._note()
        time.sleep(self.faults.get("wait_s", 0))
        url = urlsplit(self.path)
        path = url.path  # quoted: a revision with a / is one part, refs%2Fpr%2F1
        if self.faults.get("status"):
            after = self.faults.get("retry_after")
            return self._say(self.faults["status"], b"{}", **({} if after is None else {"Retry-After": str(after)}))
        if self.faults.get("html"):
            return self._say(200, b"<html>Log in to this network</html>", **{"Content-Type": "text/html"})
        if found := re.fullmatch(r"/store/([0-9a-f]{64})", path):
            return self._large(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)(?:/.*)?", path):
            if (commit := self._commit(found[1], unquote(found[3]))) is not None:
                listing = self._listing(found[1], commit)
                value = listing if found[2] == "tree" else self._about(found[1], commit, listing, parse_qs(url.query))
                self._say(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})
            return None
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (commit := self._commit(found[1], unquote(found[2]))) is not None and self._opens(found[1]):
                self._file(Path(self.state["repositories"][found[1]]["commits"][commit]), commit, unquote(found[3]))
            return None
        return self._say(404, b"no such route")

    def _note(self) -> None:
        log = self.folder / f"asked-{self.state['told']}.jsonl"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        port = self.server.server_address[1]
        line = {"method": self.command, "path": self.path, "range": self.headers.get("Range"), "token": token}
        with self.lock, log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "port": port}) + "\n")

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._say(status, body, **{"X-Error-Code": code, "X-Error-Message": message}, **headers)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _commit(self, name: str, revision: str) -> str | None:
        """The commit, or None after an answer that says why there is none."""
        repository = self.state["repositories"].get(name)
        if repository is None or (repository.get("private") and self._token() != repository["private"]):
            self._refuse(401 if not self._token() else 404, "RepoNotFound", "Repository not found")
            return None
        commit = repository["branches"].get(revision, revision)
        if commit not in repository["commits"]:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return str(commit)

    def _opens(self, name: str) -> bool:
        """Whether files may be had: what a gated repository is made of anybody may know, its files not."""
        gated = self.state["repositories"][name].get("gated")
        if not gated or (self._token() and gated in (True, self._token())):
            return True
        self._refuse(403 if self._token() else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return False

    def _listing(self, name: str, commit: str) -> list[dict[str, Any]]:
        folder = Path(self.state["repositories"][name]["commits"][commit])
        found: list[dict[str, Any]] = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(data), "oid": _oid(data)}
            if path.suffix in LARGE:
                sha256 = hashlib.sha256(data).hexdigest()
                size = self.faults.get("sizes", {}).get(entry["path"], len(data))
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
            found.append(entry)
        return found + [{"type": "file", "path": x, "size": 3, "oid": "0" * 40} for x in self.faults.get("listed", [])]

    def _about(self, name: str, commit: str, listing: list[dict[str, Any]], query: dict[str, list[str]]) -> Any:
        siblings = [{"rfilename": each["path"]} for each in listing]
        if query.get("blobs"):
            for sibling, each in zip(siblings, listing):
                sibling |= {"size": each["size"], "blobId": each["oid"]}
                if "lfs" in each:
                    sibling["lfs"] = {"sha256": each["lfs"]["oid"], "size": each["lfs"]["size"], "pointerSize": 130}
        gated = "manual" if self.state["repositories"][name].get("gated") else False
        about = {"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "gated": gated}
        return {**about, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}

    def _file(self, folder: Path, commit: str, file: str) -> None:
        path = folder / file
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        data = path.read_bytes()
        headers = {"X-Repo-Commit": commit}
        if path.suffix not in LARGE:
            return self._say(200, data, **headers, ETag=f'"{_oid(data)}"')
        sha256 = hashlib.sha256(data).hexdigest()
        with self.lock:
            (self.folder / sha256).write_text(str(path), "utf-8")
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        return self._say(302, b"", **headers, Location=f"{self.store}/store/{sha256}")

    def _large(self, sha256: str) -> None:
        path = Path((self.folder / sha256).read_text("utf-8"))
        data = path.read_bytes()
        if any(str(path).endswith(each) for each in self.faults.get("spoilt", [])):
            data = bytes([data[0] ^ 1]) + data[1:]
        begin, status, headers = 0, 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not self.faults.get("no_range"):
            begin, status = int(asked[1]), 206
            if begin >= len(data):
                return self._say(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data) - begin)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = len(data)
        with self.lock:
            key = f"{self.state['told']} {sha256}"
            if self.faults.get("cut") and self.cut.get(key, 0) < self.faults.get("cuts", 1):
                self.cut[key] = self.cut.get(key, 0) + 1
                end = min(begin + self.faults["cut"], end)
        for at in range(begin, end, PIECE):
            time.sleep(self.faults.get("store_wait_s", 0))
            self.wfile.write(data[at : min(at + PIECE, end)])
        if end < len(data):
            self.close_connection = True  # fewer bytes than Content-Length: the other side sees a broken connection
        return None


def _oid(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def main(folder: str) -> None:
    Answers.folder = Path(folder)
    hub, store = (ThreadingHTTPServer(("127.0.0.1", 0), Answers) for _ in range(2))
    Answers.store = f"http://127.0.0.1:{store.server_address[1]}"
    threading.Thread(target=store.serve_forever, daemon=True).start()
    print(json.dumps([hub.server_address[1], store.server_address[1]]), flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
