"""An HTTP/1.1 front for moto that keeps connections open, as S3 and MinIO do; moto closes each, which hides shared ones."""

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = ("connection", "expect", "transfer-encoding", "content-length", "server")


class Request:
    """What the client asks: `method`, `path`, `headers` (lower-case names), `body`. A fault may change it."""

    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def ranged(self):
        return self.method == "GET" and "range" in self.headers


class Answer:
    """What the store says: `status`, `headers` (lower-case names), `body`, `length` as announced. A fault may change it."""

    def __init__(self, status, headers, body, length=None):
        self.status, self.headers, self.body = status, headers, body
        self.length = len(body) if length is None else length


def refusal(status, code, message="no"):
    """An S3 error."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    return Answer(status, {"Content-Type": "application/xml"}, body)


class Front:
    """`before(request)` may change a request or return an Answer of its own; `after(request, answer)` may change an answer.

    `asked` counts requests by method ("GET range" for parts), `connections` how many were opened.
    """

    def __init__(self, store):
        self.before = self.after = lambda *_: None
        self.asked, self.connections = Counter(), 0
        front, to = self, urlsplit(store).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer

            def setup(self):
                super().setup()
                front.connections += 1
                self.store = http.client.HTTPConnection(to)

            def handle_expect_100(self):
                """Answer "100 Continue" at once: a client waits a second for it before it sends what it puts."""
                self.send_response_only(100)
                self.end_headers()
                self.wfile.flush()
                return True

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in _HOP}
                request = Request(self.command, self.path, headers, self.rfile.read(size) if size else None)
                front.asked["GET range" if request.ranged else request.method] += 1
                answer = front.before(request) or self.forward(request)
                front.after(request, answer)
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(answer.length))
                self.end_headers()
                if request.method != "HEAD":
                    self.wfile.write(answer.body)
                    self.close_connection = len(answer.body) < answer.length
                self.wfile.flush()

            def forward(self, request):
                self.store.request(request.method, request.path, request.body, request.headers)
                answer = self.store.getresponse()
                body = answer.read()
                headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in _HOP}
                announced = answer.getheader("Content-Length") if request.method == "HEAD" else None
                return Answer(answer.status, headers, body, int(announced) if announced else None)

            def log_message(self, *_):
                pass

        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads, self._http.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()
