"""A small HTTP server that misbehaves as it is told."""

import dataclasses
import http.server
import re
import socket
import threading
import time
import urllib.parse


@dataclasses.dataclass
class Step:
    """How one request is answered; requests after the last step are answered well."""

    drop_at: int | None = None  # close the connection after so many bytes of the body
    stall_at: int | None = None  # send so many, then nothing for as long as the client stays
    status: int | None = None  # instead of the file
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    ignore_range: bool = False
    ignore_if_range: bool = False
    length: int | None = None  # a false Content-Length
    no_length: bool = False


@dataclasses.dataclass
class Seen:
    """What one request asked and got."""

    path: str
    range: str | None
    if_range: str | None
    status: int = 0
    sent: int = 0  # bytes of the body


class Site(http.server.ThreadingHTTPServer):
    """Serves `files` (path: content) on a free port, one `Step` of `plan` per request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"1"'
        self.plan: list[Step] = []
        self.seen: list[Seen] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that go away are part of the tests


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site: Site = self.server
        step = site.plan.pop(0) if site.plan else Step()
        path = urllib.parse.urlsplit(self.path).path  # a proxy is asked for a whole URL
        seen = Seen(path, self.headers["Range"], self.headers["If-Range"])
        site.seen.append(seen)
        content = site.files.get(path)
        seen.status = step.status or (404 if content is None else 200)
        if seen.status != 200:
            self._head(seen.status, {"Content-Length": "0", **step.headers})
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        fresh = seen.if_range is None or seen.if_range == site.etag or step.ignore_if_range
        if asked and fresh and not step.ignore_range:
            start, seen.status = int(asked[1]), 206
        if start >= len(content) > 0:
            seen.status = 416
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content[start:]
        headers = {"ETag": site.etag} if site.etag else {}
        if seen.status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not step.no_length:
            headers["Content-Length"] = str(step.length if step.length is not None else len(body))
        self._head(seen.status, {**headers, **step.headers})
        stop = next((at for at in (step.drop_at, step.stall_at) if at is not None), len(body))
        self.wfile.write(body[:stop])
        self.wfile.flush()
        seen.sent = min(stop, len(body))
        while step.stall_at is not None and not self._gone():
            time.sleep(0.01)
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _gone(self) -> bool:
        self.connection.settimeout(0.001)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def log_message(self, *_):
        pass
