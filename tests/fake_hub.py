"""A model hub on this machine, for tests: real HTTP, with faults on request.

Serves `repos` as the Hugging Face hub does (file lists, resolve, ranges, ETags). A file's next
answers can be replaced: `hub.next["model.bin"] = [drop_after(1000), ...]`.
"""

import contextlib
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`with FakeHub() as hub:`; `hub.url` goes into HF_ENDPOINT."""

    def __init__(self, tls=None):
        self.repos = {}  # owner/name -> {path: bytes}
        self.next = {}  # file name -> answers to give before the ordinary ones
        self.requests = []  # (path, headers) of each
        self.small = set()  # files that the list gives no SHA-256 of, as for those not in LFS
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self):
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def listing(self, repo):
        return [
            {
                "type": "file",
                "path": path,
                "size": len(body),
                "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(),
                **({} if path in self.small else {"lfs": _lfs(body)}),
            }
            for path, body in self.repos[repo].items()
        ]

    def asked_for(self, name):
        """The headers of each request for a file."""
        return [headers for path, headers in self.requests if path.endswith(f"/{name}")]


def _lfs(body):
    return {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((path, dict(self.headers)))
            parts = path.strip("/").split("/")
            name = parts[-1]
            waiting = hub.next.get("list" if parts[0] == "api" else name, [])
            answer = waiting.pop(0) if waiting else ordinary
            if parts[0] == "api":
                repo = "/".join(parts[2:4])
                found = json.dumps(hub.listing(repo)).encode() if repo in hub.repos else None
            else:
                found = next((files[name] for files in hub.repos.values() if name in files), None)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a killed client
                answer(self, found)

        def log_message(self, *_):
            pass

    return Handler


def ordinary(handler, body, *, etag=None, ranges=True, limit=None, pause_seconds=0.0):
    """What the hub answers: all of it, or the range that was asked for."""
    if body is None:
        return status(404)(handler, None)
    etag = etag or f'"{hashlib.sha256(body).hexdigest()}"'
    wanted = handler.headers.get("Range") if ranges else None
    if handler.headers.get("If-Range", etag) != etag:
        wanted = None
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    if start >= len(body) > 0:
        return status(416, {"Content-Range": f"bytes */{len(body)}"})(handler, None)
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    handler.send_header("X-Repo-Commit", COMMIT)
    handler.send_header("ETag", etag)
    handler.end_headers()
    end = len(body) if limit is None else min(len(body), start + limit)
    for at in range(start, end, 1 << 16):
        handler.wfile.write(body[at : min(at + (1 << 16), end)])
        if pause_seconds:
            time.sleep(pause_seconds)
    return None


def drop_after(num_bytes, **options):
    """The connection breaks after so many bytes of the answer."""

    def answer(handler, body):
        ordinary(handler, body, limit=num_bytes, **options)
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    return answer


def damaged(handler, body):
    """As long as the file, and not the file."""
    ordinary(handler, bytes(len(body)), etag='"damaged"')


def without_ranges(handler, body):
    ordinary(handler, body, ranges=False)


def slowly(handler, body):
    ordinary(handler, body, pause_seconds=0.05)


def silent(handler, body):
    """Accepts the request, and says nothing for longer than the tests wait."""
    time.sleep(1.0)


def other_version(handler, body):
    """A server that ignores If-Range, and has another version of the file by now."""
    del handler.headers["If-Range"]
    ordinary(handler, b"x" * len(body), etag='"other"')


def status(code, headers=None):
    def answer(handler, body):
        handler.send_response(code)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(location):
    return status(302, {"Location": location})
