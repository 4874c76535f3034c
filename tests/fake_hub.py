"""A server that answers as the Hugging Face hub does for one repository."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

REPOSITORY, COMMIT = "somebody/tiny", "a" * 40


@contextlib.contextmanager
def fake_hub(folder: Path, asked: list[str]) -> Iterator[str]:
    """Serves `folder` as `REPOSITORY`; yields the address, and `asked` grows by what is asked for, `GET /...`."""
    handler = type("Handler", (Hub,), {"folder": folder, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class Hub(http.server.BaseHTTPRequestHandler):
    """Lists the files of `folder` and hands them out; other repositories and revisions don't exist."""

    folder: Path
    asked: list[str]

    def answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path, api = self.path.split("?")[0], f"/api/models/{REPOSITORY}/"
        if path.startswith(api):
            kind, revision = path.removeprefix(api).split("/")[:2]
            if revision not in ("main", COMMIT):
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.send(200, json.dumps(self.files() if kind == "tree" else self.facts()).encode(), {})
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            data = (self.folder / path.split(COMMIT + "/", 1)[1]).read_bytes()
            self.send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def files(self) -> list[dict[str, object]]:
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in paths
        ]

    def facts(self) -> dict[str, object]:
        names = [{"rfilename": file["path"]} for file in self.files()]
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": names, "tags": [], "private": False}

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""
