"""A server that answers as the Hugging Face hub does for one repository.

  python -m tests.fake_hub FOLDER

Prints its port, then what it is asked for.
"""

import hashlib
import http.server
import json
import sys
from pathlib import Path

REPOSITORY, COMMIT = "somebody/tiny", "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Lists the files of `folder` and hands them out; other repositories and revisions don't exist."""

    folder: Path

    def answer(self) -> None:
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
        """Says what was asked for on standard output, in place of the library's own lines."""
        print(self.command, self.path, flush=True)


if __name__ == "__main__":
    Hub.folder = Path(sys.argv[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
