"""One request to a model hub: who may be asked, what is sent along, and what a refusal means.

A transient failure leaves as OSError, for the caller to try again with `Patience`; what
another attempt cannot mend leaves as TwinlensError. Nothing here writes to the disk.
"""

import email.message
import http.client
import ipaddress
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import SplitResult, urlsplit

from twinlens.errors import ConfigError, ModelNotFound, TwinlensError

DEFAULT_ENDPOINT = "https://huggingface.co"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 1.0  # doubled at every failure in a row
LONGEST_WAIT_SECONDS = 30.0
LARGEST_JSON_BYTES = 20_000_000
OFFLINE_HINT = (
    "Connect this machine, or pull on one that is connected, copy the folder here, and name it "
    "with --model FOLDER."
)

Origin = tuple[str, str, int]  # scheme, host, port


class Connection:
    """Requests to one hub (HF_ENDPOINT), with its token (HF_TOKEN), and to where it redirects.

    The token goes to the hub's own origin only. Redirects lead to https, and never to an
    address inside a private network, unless that is the hub itself: or else a hostile page
    could make this machine ask its neighbours.
    """

    def __init__(self, *, timeout_seconds: float = 30.0, retries: int = 5) -> None:
        self.endpoint = _endpoint()
        self.timeout_seconds = timeout_seconds
        self.retries = retries  # failures in a row without progress
        self._origin = _origin(urlsplit(self.endpoint))
        self._token = _token()
        self._trusted = {self._origin}

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).netloc

    @property
    def may_send_token(self) -> bool:
        """Not in clear text over a network."""
        return self._origin[0] == "https" or self._origin[1] in LOCAL_NAMES

    def open(self, url: str, headers: dict[str, str] | None = None) -> Any:
        """A response with status 200, 206 or 416, redirects followed.

        Raises OSError for what may pass, TwinlensError for what will not.
        """
        origin = _origin(urlsplit(url))
        clear = origin[0] == "http" and (origin == self._origin or origin[1] in LOCAL_NAMES)
        if origin[0] != "https" and not clear:
            raise TwinlensError(f"{url} is not fetched: only https is, and the hub's own address.")
        self._trusted.add(origin)
        request = urllib.request.Request(url, headers=headers or {})
        request.add_header("User-Agent", "twinlens")
        request.add_header("Accept-Encoding", "identity")  # byte ranges count what is stored
        self.authorise(request)
        opener = urllib.request.build_opener(_Redirects(self), _GuardedHttps(self))
        try:
            return opener.open(request, timeout=self.timeout_seconds)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error
            error.close()
            if error.code in TRANSIENT_STATUSES:
                raise  # an HTTPError is an OSError
            raise self._refusal(error, url) from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"not HTTP: {type(error).__name__}") from error

    def json(self, url: str) -> tuple[Any, email.message.Message]:
        """A JSON answer and its headers, tried again while that may help."""
        patience = Patience(urlsplit(url).netloc, self.retries, kept="")
        while True:
            try:
                with self.open(url) as response:
                    body = response.read(LARGEST_JSON_BYTES + 1)
                    headers = response.headers
                break
            except http.client.IncompleteRead as error:
                patience.after(ConnectionError(str(error)))
            except OSError as error:
                patience.after(error)
        try:
            if len(body) > LARGEST_JSON_BYTES:
                raise ValueError("too long")
            return json.loads(body), headers
        except ValueError as error:
            raise TwinlensError(
                f"{self.host} answered with something that is no list of files ({error}). "
                f"Is HF_ENDPOINT a model hub?"
            ) from error

    def authorise(self, request: urllib.request.Request) -> None:
        """Add the token to a request for the hub itself; never to one for anywhere else."""
        own = _origin(urlsplit(request.full_url)) == self._origin
        if self._token and own and self.may_send_token:
            # "Unredirected": urllib would carry an ordinary header along to other hosts.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")

    def trusts(self, host: str, port: int) -> bool:
        """Whether somebody on this machine chose this address, rather than a server."""
        return any((host, port) == origin[1:] for origin in self._trusted)

    def redirect_refusal(self, url: str) -> str | None:
        """Why a redirect to `url` is not followed, or None."""
        parts = urlsplit(url)
        origin = _origin(parts)
        if origin in self._trusted:
            return None
        if parts.scheme != "https":
            return "only https is followed"
        if origin[1] == "localhost" or is_private(origin[1]):
            return "an address inside a private network"
        return None

    def _refusal(self, error: urllib.error.HTTPError, url: str) -> TwinlensError:
        """What a status that will not pass means."""
        parts = urlsplit(url)
        what, page = self._subject(parts)
        code = error.headers.get("X-Error-Code", "")
        if code == "RevisionNotFound":
            return ModelNotFound(f"{what} has no such revision. Its revisions: {page}/tree/main")
        if code == "EntryNotFound":
            return ModelNotFound(f"{what} no longer holds {parts.path.rpartition('/')[2]}.")
        if error.code == 404 or code == "RepoNotFound":
            private = "" if self._token else " If it is private, set HF_TOKEN."
            return ModelNotFound(f"{parts.netloc} has no {what}. Check the name.{private}")
        if error.code in (401, 403):
            unsent = "" if self.may_send_token else " (over https: a token is not sent without it)"
            return TwinlensError(
                f"{what} is gated or private. Accept the licence at {page} with your account, set "
                f"HF_TOKEN to a token of it{unsent}, and pull again."
            )
        return TwinlensError(f"{parts.netloc} answered HTTP {error.code} for {what}.")

    def _subject(self, parts: SplitResult) -> tuple[str, str]:
        """What a URL is about, `owner/repo` or a file's name, and the page about it."""
        path = parts.path.removeprefix(urlsplit(self.endpoint).path)
        pieces = path.removeprefix("/api/models").strip("/").split("/")
        if _origin(parts) == self._origin and len(pieces) > 2:
            return "/".join(pieces[:2]), f"{self.endpoint}/{'/'.join(pieces[:2])}"
        return pieces[-1], f"{parts.scheme}://{parts.netloc}"


class Patience:
    """Counts failures in a row, and chooses between waiting and giving up."""

    def __init__(self, host: str, retries: int, *, kept: str) -> None:
        self.host = host
        self.retries = retries
        self.kept = kept  # a sentence about what an earlier attempt left, or nothing
        self.failures = 0

    def progressed(self) -> None:
        self.failures = 0

    def after(self, error: OSError) -> None:
        """Wait before another attempt, or raise TwinlensError: what failed and what to do."""
        self.failures += 1
        reason = _reason(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise TwinlensError(
                f"{self.host} has a certificate that this machine does not trust "
                f"({reason.verify_message}). If a proxy of yours is in between, set SSL_CERT_FILE "
                f"to its certificate."
            ) from error
        unreachable = isinstance(reason, (socket.gaierror, ConnectionRefusedError))
        if self.failures > (1 if unreachable else self.retries):
            raise TwinlensError(self._given_up(reason)) from error
        wait = FIRST_WAIT_SECONDS * 2 ** (self.failures - 1)
        if isinstance(error, urllib.error.HTTPError):
            asked = error.headers.get("Retry-After", "")
            wait = max(wait, float(asked) if asked.isdecimal() else 0.0)
        time.sleep(min(wait, LONGEST_WAIT_SECONDS))

    def _given_up(self, reason: object) -> str:
        if isinstance(reason, urllib.error.HTTPError):
            return (
                f"{self.host} is busy or broken (HTTP {reason.code}). {self.kept}Pull again later."
            )
        if isinstance(reason, TimeoutError):
            what = "did not answer in time"
        else:
            text = getattr(reason, "strerror", None) or str(reason)
            what = f"cannot be reached ({text[:1].lower()}{text[1:]})"
        return f"{self.host} {what}. {self.kept}{OFFLINE_HINT}"


def _reason(error: OSError) -> object:
    """What is behind urllib's wrapper; an HTTP status is its own reason."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return error.reason
    return error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where `Connection` says so."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        refusal = self._connection.redirect_refusal(newurl)
        if refusal is not None:
            fp.close()
            target = urlsplit(newurl)
            raise TwinlensError(
                f"{req.host} redirects to {target.scheme}://{target.netloc}, which is refused: "
                f"{refusal}. If that server is yours, set HF_ENDPOINT to it."
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self._connection.authorise(request)
        return request


class _GuardedHttps(urllib.request.HTTPSHandler):
    """https that does not connect to a private address under a public name."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._tls = ssl.create_default_context()

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def make(host: str, **options: Any) -> http.client.HTTPSConnection:
            https = http.client.HTTPSConnection(host, **options)
            vars(https)["_create_connection"] = lambda address, *rest: self._connect(
                address, https, *rest
            )
            return https

        return self.do_open(make, req, context=self._tls)

    def _connect(
        self, address: tuple[str, int], https: http.client.HTTPSConnection, *rest: Any
    ) -> socket.socket:
        host, port = address
        through_proxy = vars(https).get("_tunnel_host") is not None
        if through_proxy or self._connection.trusts(host, port):
            return socket.create_connection(address, *rest)
        # Resolved once: a second look-up could give the address that the check was against.
        found = [
            str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        ]
        if private := [numbers for numbers in found if is_private(numbers)]:
            raise TwinlensError(
                f"a redirect leads to {host}, which is {private[0]}, an address inside a private "
                f"network; it is refused. If that server is yours, set HF_ENDPOINT to it."
            )
        for numbers in found[:-1]:
            try:
                return socket.create_connection((numbers, port), *rest)
            except OSError:
                continue
        return socket.create_connection((found[-1], port), *rest)


def is_private(host: str) -> bool:
    """Whether `host`, as numbers, is not an address of the public internet."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _origin(parts: SplitResult) -> Origin:
    try:
        port = parts.port
    except ValueError as error:
        raise TwinlensError(f"{parts.netloc!r} is no address of a server.") from error
    return parts.scheme, parts.hostname or "", port or (80 if parts.scheme == "http" else 443)


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ConfigError("HF_ENDPOINT must be a hub's address, like https://huggingface.co.")
    return endpoint


def _token() -> str:
    token = (os.environ.get("HF_TOKEN") or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("HF_TOKEN is no token: it holds spaces or special letters.")  # unprinted
    return token
