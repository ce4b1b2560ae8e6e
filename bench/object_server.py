"""A read-only S3 server of a local folder, which counts what is fetched: `s3://files/NAME` is FOLDER/NAME."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "files"


class Fetches:
    """The requests that a server has answered: ranges (first byte, bytes) of each name, and the number of other requests."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        self.others = 0

    def clear(self) -> None:
        self.ranges.clear()
        self.others = 0

    @property
    def bytes(self) -> int:
        return sum(length for _, _, length in self.ranges)

    @property
    def requests(self) -> int:
        return len(self.ranges) + self.others


@contextmanager
def serve(folder: Path) -> Iterator[Fetches]:
    """Serve a folder until the block ends. Children of this process reach it too, by the usual AWS environment."""
    fetches = Fetches()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, fetches))
    server.daemon_threads = True
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield fetches
    finally:
        server.shutdown()
        server.server_close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def __init__(self, folder: Path, fetches: Fetches, *args: object) -> None:
        self._folder, self._fetches = folder, fetches
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._fetches.others += 1
        self._answer(*self._span(), with_body=False)

    def do_GET(self) -> None:
        if "list-type" in parse_qs(urlsplit(self.path).query):
            self._fetches.others += 1
            self._list()
            return
        path, status, first, length = self._span()
        self._fetches.ranges.append((path.name, first, length))
        self._answer(path, status, first, length, with_body=True)

    def _span(self) -> tuple[Path, int, int, int]:
        """Return the file, the status, and the first byte and number of bytes that the request names."""
        path = self._folder / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
        if not path.is_file():
            return path, 404, 0, 0
        size = path.stat().st_size
        if self.headers.get("If-Match", _etag(path)) != _etag(path):
            return path, 412, 0, 0
        wanted = self.headers.get("Range")
        if not wanted:
            return path, 200, 0, size
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= size:
            return path, 416, 0, 0
        return path, 206, int(first), min(int(last or size), size - 1) + 1 - int(first)

    def _answer(self, path: Path, status: int, first: int, length: int, with_body: bool) -> None:
        self.send_response_only(status)
        if status in (200, 206):
            self.send_header("ETag", _etag(path))
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + length - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if with_body and length:
            with path.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(length))
        self.wfile.flush()

    def _list(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        files = sorted(path for path in self._folder.iterdir() if path.is_file() and path.name.startswith(prefix))
        items = "".join(
            f"<Contents><Key>{escape(path.name)}</Key><Size>{path.stat().st_size}</Size><ETag>{escape(_etag(path))}</ETag>"
            f"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for path in files
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
        self.send_response_only(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _etag(path: Path) -> str:
    status = path.stat()
    return f'"{hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]}"'
