"""Bytes of a shard that is elsewhere: over http(s), or from a command's output.

A transfer that breaks goes on where it broke: by asking for the rest, or, where the server
cannot do that, by reading again and skipping what is here. Addresses of this machine and
its network are refused unless allowed: a list of shards may be anyone's work, and fetching
from it must not let its author ask questions inside a private network.
"""

import http.client
import io
import ipaddress
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

RETRIES = 5  # failures in a row without a byte in between
FIRST_WAIT_SECONDS = 1.0  # doubled at every failure in a row
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
CHUNK_BYTES = 1 << 20


def open_url(url: str, *, allow_private_hosts: bool, timeout_seconds: float) -> io.BufferedReader:
    """The bytes of `url`, read once from front to back. Reading raises OSError when it fails."""
    raw = _HttpStream(url, allow_private_hosts, timeout_seconds)
    return io.BufferedReader(raw, CHUNK_BYTES)


def open_command(command: str) -> io.BufferedReader:
    """What a shell command prints. Reading to the end raises OSError if the command failed."""
    return io.BufferedReader(_CommandStream(command), CHUNK_BYTES)


class _CommandStream(io.RawIOBase):
    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            command, shell=True, stdout=subprocess.PIPE, start_new_session=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._process.stdout is not None
        data = self._process.stdout.read(len(buffer))
        buffer[: len(data)] = data
        if not data and (status := self._process.wait()) != 0:
            raise OSError(f"the command ended with status {status}")
        return len(data)

    def close(self) -> None:
        if not self.closed:
            if self._process.stdout is not None:
                self._process.stdout.close()
            if self._process.poll() is None and hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGTERM)  # what the shell started, too
            self._process.wait()
        super().close()


class _HttpStream(io.RawIOBase):
    """A response that mends itself."""

    def __init__(self, url: str, allow_private_hosts: bool, timeout_seconds: float) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        handlers = [_Guarded(allow_private_hosts), _GuardedTls(allow_private_hosts)]
        self._opener = urllib.request.build_opener(*handlers)
        self._opener.addheaders = [("User-Agent", "twinlens")]
        self._response: Any = None
        self._position = 0
        self._total: int | None = None
        self._etag = ""
        self._failures = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                if self._response is None:
                    self._connect()
                data = self._response.read(len(buffer))
                if not data and self._total is not None and self._position < self._total:
                    raise ConnectionError("the connection was closed early")
                self._position += len(data)
                self._failures = 0 if data else self._failures
                buffer[: len(data)] = data
                return len(data)
            except (OSError, http.client.HTTPException) as error:
                self._give_up_or_wait(error)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()

    def _connect(self) -> None:
        request = urllib.request.Request(self._url)
        request.add_header("Accept-Encoding", "identity")  # ranges count what is stored
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
            if self._etag and not self._etag.startswith("W/"):
                request.add_header("If-Range", self._etag)
        response = self._opener.open(request, timeout=self._timeout_seconds)
        skip = self._position
        if response.status == 206:
            start = response.headers.get("Content-Range", "").partition("-")[0]
            skip -= int(start.rpartition(" ")[2] or 0)
            if skip < 0:
                response.close()
                raise PermissionError("the server sent another part than was asked for")
        elif self._position and response.headers.get("ETag", "") != self._etag:
            response.close()
            raise PermissionError("the file changed while it was being read")
        else:
            self._etag = response.headers.get("ETag", "")
            length = response.headers.get("Content-Length")
            self._total = int(length) if length and length.isdecimal() else None
        while skip > 0:
            data = response.read(min(skip, CHUNK_BYTES))
            if not data:
                response.close()
                raise ConnectionError("the connection was closed early")
            skip -= len(data)
        self._response = response

    def _give_up_or_wait(self, error: Exception) -> None:
        """Returns when another attempt makes sense; raises OSError with the reason otherwise."""
        if self._response is not None:
            self._response.close()
            self._response = None
        self._failures += 1
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        lasting = isinstance(reason, PermissionError)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            lasting = error.code not in TRANSIENT_STATUSES
            reason = f"HTTP {error.code}"
        if lasting or self._failures > RETRIES:
            raise OSError(f"{reason}") from error
        time.sleep(FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))


def _guarded_connection(kind: Any, allow_private_hosts: bool) -> Any:
    def make(host: str, **options: Any) -> Any:
        connection = kind(host, **options)

        def connect(address: tuple[str, int], *rest: Any) -> socket.socket:
            proxied = vars(connection).get("_tunnel_host") is not None or _is_proxy(host)
            if allow_private_hosts or proxied:
                return socket.create_connection(address, *rest)
            return _connect_publicly(address, *rest)

        vars(connection)["_create_connection"] = connect
        return connection

    return make


class _Guarded(urllib.request.HTTPHandler):
    def __init__(self, allow_private_hosts: bool) -> None:
        super().__init__()
        self._allow = allow_private_hosts

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        _refuse_private_names(req, self._allow)
        return self.do_open(_guarded_connection(http.client.HTTPConnection, self._allow), req)


class _GuardedTls(urllib.request.HTTPSHandler):
    def __init__(self, allow_private_hosts: bool) -> None:
        super().__init__()
        self._allow = allow_private_hosts

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        _refuse_private_names(req, self._allow)
        return self.do_open(_guarded_connection(http.client.HTTPSConnection, self._allow), req)


def _refuse_private_names(request: urllib.request.Request, allow_private_hosts: bool) -> None:
    """A proxy resolves names itself, so that what can be seen from here is the URL alone."""
    host = urlsplit(request.full_url).hostname or ""
    if not allow_private_hosts and (host == "localhost" or _is_private(host)):
        raise PermissionError(_refusal(host))


def _connect_publicly(address: tuple[str, int], *rest: Any) -> socket.socket:
    host, port = address
    # Resolved once: a second look-up could give the address that the check was against.
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if private := [numbers for numbers in found if _is_private(numbers)]:
        raise PermissionError(_refusal(f"{host} ({private[0]})"))
    for numbers in found[:-1]:
        try:
            return socket.create_connection((numbers, port), *rest)
        except OSError:
            continue
    return socket.create_connection((found[-1], port), *rest)


def _refusal(host: str) -> str:
    return (
        f"{host} is an address of this machine or its network; if the shards are yours, set "
        f"allow_private_hosts to true"
    )


def _is_proxy(host: str) -> bool:
    proxies = [urlsplit(proxy).netloc.rpartition("@")[2] for proxy in _proxies().values()]
    return host in proxies


def _proxies() -> dict[str, str]:
    return {k: v for k, v in urllib.request.getproxies().items() if k in ("http", "https")}


def _is_private(host: str) -> bool:
    """Whether `host`, as numbers, is not an address of the public internet."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not (getattr(address, "ipv4_mapped", None) or address).is_global
