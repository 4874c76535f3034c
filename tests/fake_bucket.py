"""A folder that is read as if it were a Google Cloud Storage bucket, by Python's clients and by ArrayRecord's."""

import contextlib
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

from etils.epath import backend

NAME = "gs://fake-bucket"
_OBJECT = re.compile(r"/storage/v1/b/fake-bucket/o/(.+)")


@contextlib.contextmanager
def fake_bucket(folder: Path, asked: list[str]) -> Iterator[None]:
    """Makes `gs://fake-bucket` stand for `folder`; `asked` is filled with what ArrayRecord asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """An object's bytes, or a range of them: all that ArrayRecord asks a store for."""
            found = _OBJECT.fullmatch(urlsplit(self.path).path)
            path = folder / unquote(found[1]) if found else folder / "none"
            asked.append(path.name)
            data = path.read_bytes() if path.is_file() else b""
            first, last = 0, len(data) - 1
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(span[1]), min(int(span[2] or last), last)
            self.send_response(404 if not path.is_file() else 206 if span else 200)
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("x-goog-generation", "1")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # its reader has had enough
                self.wfile.write(data[first : last + 1])

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
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

    def asking(name: str) -> Callable[..., Any]:
        return lambda path, *rest: getattr(disk, name)(local(path), *rest)

    return {name: asking(name) for name in ("exists", "isdir", "listdir", "open", "stat")} | {"glob": matching}
