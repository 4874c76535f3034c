"""A folder that stands for a Google Cloud Storage bucket, for Python's clients, ArrayRecord's and TensorStore's."""

import contextlib
import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from etils.epath import backend

NAME = "gs://fake-bucket"
_LIST = "/storage/v1/b/fake-bucket/o"
_OBJECT = re.compile(r"/storage/v1/b/fake-bucket/o/(.+)")


@contextlib.contextmanager
def fake_bucket(folder: Path, asked: list[str]) -> Iterator[None]:
    """Makes `gs://fake-bucket` stand for `folder`; `asked` is filled with what ArrayRecord asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """A list of objects, an object's bytes, or a range of them."""
            url = urlsplit(self.path)
            if url.path == _LIST:
                wanted = {name: values[0] for name, values in parse_qs(url.query).items()}
                self._answer(200, _listed(folder, wanted.get("startOffset", ""), wanted.get("endOffset", "")))
                return
            found = _OBJECT.fullmatch(url.path)
            path = folder / unquote(found[1]) if found else folder / "none"
            asked.append(path.name)
            data = path.read_bytes() if path.is_file() else b""
            first, last = 0, len(data) - 1
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(span[1]), min(int(span[2] or last), last)
            status = 404 if not path.is_file() else 206 if span else 200
            self._answer(status, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

        def do_POST(self) -> None:
            """Writes an object."""
            path = folder / parse_qs(urlsplit(self.path).query)["name"][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(200, _entry(folder, path))

        def do_DELETE(self) -> None:
            """Deletes an object."""
            found = _OBJECT.fullmatch(urlsplit(self.path).path)
            (folder / unquote(found[1] if found else "none")).unlink(missing_ok=True)
            self._answer(204, b"")

        def _answer(self, status: int, data: bytes, span: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if span:
                self.send_header("Content-Range", span)
            self.send_header("x-goog-generation", "1")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # its reader has had enough
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "TENSORSTORE_GCS_HTTP_URL")
    place = dict.fromkeys(names, f"http://127.0.0.1:{server.server_port}")
    with mock.patch.dict(os.environ, place), mock.patch.multiple(backend.tf_backend, **_on_disk(folder)):
        yield
    server.shutdown()
    server.server_close()


def _on_disk(folder: Path) -> dict[str, Callable[..., Any]]:
    """What etils asks TensorFlow's client for paths of buckets, asked of a disk."""
    disk = backend.os_backend

    def local(path: Any) -> str:
        return os.fspath(path).replace(NAME, str(folder), 1)

    def matching(path: Any) -> list[str]:
        return [name.replace(str(folder), NAME, 1) for name in disk.glob(local(path))]

    def open_file(path: Any, mode: str) -> Any:
        if "r" not in mode:  # a bucket has no folders
            Path(local(path)).parent.mkdir(parents=True, exist_ok=True)
        return disk.open(local(path), mode)

    def asking(name: str) -> Callable[..., Any]:
        return lambda path, **options: getattr(disk, name)(local(path), **options)

    def moving(name: str) -> Callable[..., Any]:
        return lambda path, target: getattr(disk, name)(local(path), local(target))

    found = {name: asking(name) for name in ("exists", "isdir", "listdir", "stat", "mkdir", "makedirs")}
    found |= {name: asking(name) for name in ("rmtree", "remove")}
    return found | {"glob": matching, "open": open_file, "rename": moving("rename"), "replace": moving("replace")}


def _listed(folder: Path, first: str, end: str) -> bytes:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    chosen = [path for name, path in names.items() if name >= first and (not end or name < end)]
    return b'{"items": [' + b", ".join(_entry(folder, path) for path in chosen) + b"]}"


def _entry(folder: Path, path: Path) -> bytes:
    """What a store says of an object."""
    size = path.stat().st_size if path.exists() else 0
    found = {"name": path.relative_to(folder).as_posix(), "size": str(size), "generation": "1", "metageneration": "1"}
    return json.dumps(found).encode()
