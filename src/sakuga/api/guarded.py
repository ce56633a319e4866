"""Requests to addresses that users write: nothing inside the farm's own network can be reached with them.

A host name is resolved once; every answer must be a public address, and the address that was checked is the one that is
dialled, with the original name in Host and in the TLS handshake. So a name that changes its answer gains nothing. A
redirect is followed by hand, as a new address. The time limit holds for the whole exchange, not for each read.
Proxies of the environment are not used. Sentences of errors name no address and no name of a redirect.

Run its tests: pytest tests/unit/test_guarded.py
"""

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpcore
import httpx

from sakuga.errors import UrlError
from sakuga.media.files import atomic_file

PORTS = (80, 443)
CONNECT_S = 5.0
"""For one of the addresses of a name; a dead one leaves time for the next."""
MAX_URL_CHARS = 2000
SNIFFED_BYTES = 12
PICTURE_HEADERS = {"Accept": "image/jpeg, image/png, image/webp", "Accept-Encoding": "identity"}
REDIRECTS = frozenset({301, 302, 303, 307, 308})

SPECIAL_V4 = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3", "168.63.129.16/32",
    )
]  # fmt: skip
"""IANA's special purpose addresses, multicast, reserved ones, and Azure's host, which hands out secrets. Our own table:
`is_global` of the standard library differs between versions of Python."""
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""All that is given out; outside lie loopback, private, link-local, multicast and IPv4 written as IPv6."""
SPECIAL_V6 = [ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
"""Within it: Teredo and other protocols, documentation, 6to4 (which holds an IPv4 address)."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""An IPv4 address as an IPv6-only network sees it."""

Resolver = Callable[[str, int], Sequence[str]]


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the Internet could reach.

    >>> [is_public(each) for each in ("93.184.216.34", "127.0.0.1", "64:ff9b::7f00:1")]
    [True, False, False]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        return ip in GLOBAL_V6 and not any(ip in network for network in SPECIAL_V6)
    return not any(ip in network for network in SPECIAL_V4)


def system_resolver(host: str, port: int) -> Sequence[str]:
    """Addresses of a name, as this machine knows them."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a file from elsewhere may be and take."""

    max_bytes: int = 25_000_000
    total_s: float = 30.0
    max_redirects: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The head of an answer; its body is not read."""

    status: int
    retry_after: str | None


class Deadline:
    """The end of an exchange."""

    def __init__(self, total_s: float) -> None:
        self._end = time.monotonic() + total_s

    def left_s(self) -> float:
        """Raises httpcore's ReadTimeout when nothing is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the exchange is over its time")
        return left


class AddressGuard:
    """Requests with the checks above. Threads may share one."""

    def __init__(
        self,
        *,
        trusted_origins: Iterable[str] = (),
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
        network: httpcore.NetworkBackend | None = None,
    ) -> None:
        """`trusted_origins`, like "http://10.0.0.5:8080", are those that the operator allows although they are not
        public, not https or on another port. `network` dials."""
        self.resolver = resolver
        self.network = network or httpcore.SyncBackend()
        self._trusted = frozenset(_origin(httpx.URL(origin)) for origin in trusted_origins)
        self._ssl_context = ssl_context or httpx.create_ssl_context()

    def check(self, url: str, *, label: str) -> httpx.URL:
        """The parsed address, if nothing but its name's addresses is left to check. Raises UrlError."""
        if len(url) > MAX_URL_CHARS:
            raise UrlError(f"{label} has {len(url)} characters; at most {MAX_URL_CHARS} are taken")
        try:
            parsed = httpx.URL(url)
            parsed = parsed.copy_with(host=parsed.raw_host.decode().removesuffix("."), fragment=None)
        except (httpx.InvalidURL, ValueError) as error:
            raise UrlError(f"{label} is not an address of the web; write it as https://host/path") from error
        if _origin(parsed) in self._trusted:
            return parsed
        if parsed.scheme != "https":
            raise UrlError(f"{label} must begin with https://")
        if parsed.userinfo:
            raise UrlError(f"{label} must not hold a user name or password")
        if (parsed.port or 443) not in PORTS:
            raise UrlError(f"{label} is on a port that is not allowed; use 443")
        host = parsed.raw_host.decode()
        if "%" in host or ("." not in host and ":" not in host):  # %: the zone of a link-local address
            raise UrlError(f"{label} needs a full host name, such as images.example.com")
        _all_public(_numeric(host), label)
        return parsed

    def fetch_picture(self, url: str, out: Path, *, limits: FetchLimits | None = None, label: str) -> Path:
        """What a web server gives for `url`, in the file `out`: not decoded, but it begins like JPEG, PNG or WebP.

        Raises UrlError; OutputError when `out` cannot be written.
        """
        limits = limits or FetchLimits()
        deadline = Deadline(limits.total_s)
        for _ in range(limits.max_redirects + 1):
            parsed = self.check(url, label=label)
            with self._exchange("GET", parsed, deadline, label, PICTURE_HEADERS) as response:
                target = _header(response, b"location")
                if response.status not in REDIRECTS or target is None:
                    with atomic_file(out) as temporary:
                        _write_picture(response, temporary, limits.max_bytes, label)
                    return out
            try:
                url = str(parsed.join(target))
            except (httpx.InvalidURL, ValueError) as error:
                raise UrlError(f"{label} is redirected to something that is no address of the web") from error
        raise UrlError(f"{label} is redirected more than {limits.max_redirects} times; give the last address")

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, total_s: float, label: str) -> Reply:
        """Sends a body and reads the head of the answer. Raises UrlError when there is none."""
        deadline = Deadline(total_s)
        with self._exchange("POST", self.check(url, label=label), deadline, label, headers, body) as response:
            return Reply(status=response.status, retry_after=_header(response, b"retry-after"))

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        url: httpx.URL,
        deadline: Deadline,
        label: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> Generator[httpcore.Response]:
        """One request on a connection of its own."""
        dialler = _Dialler(self, deadline, label, is_trusted=_origin(url) in self._trusted)
        address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = {"Host": url.netloc.decode(), "User-Agent": "sakuga", **headers}
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._ssl_context, network_backend=dialler) as pool,
                pool.stream(method, address, headers=list(sent.items()), content=body) as response,
            ):
                yield response
        except httpcore.TimeoutException as error:
            raise UrlError(f"{label} did not answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise UrlError(f"{label} could not be reached, or broke off; check it with a browser") from error

    def addresses(self, host: str, port: int, deadline: Deadline, label: str) -> Sequence[str]:
        """All addresses of a name. In a thread, as the system's resolver knows no time limit."""
        answers: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.resolver(host, port))
            except (OSError, ValueError):  # ValueError: no legal name
                answers.put(None)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            found = answers.get(timeout=deadline.left_s())
        except queue.Empty:
            raise UrlError(f"{label} did not answer in time") from None
        if not found:
            raise UrlError(f"the host name of {label} is not known; check its spelling")
        return found


class _Dialler(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, guard: AddressGuard, deadline: Deadline, label: str, *, is_trusted: bool) -> None:
        self._guard, self._deadline, self._label, self._is_trusted = guard, deadline, label, is_trusted

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._guard.addresses(host, port, self._deadline, self._label)
        if not self._is_trusted:
            _all_public(addresses, self._label)
        failure: Exception | None = None
        for address in addresses:
            limit_s = min(CONNECT_S, self._deadline.left_s())
            try:
                stream = self._guard.network.connect_tcp(address, port, limit_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")


class _TimedStream(httpcore.NetworkStream):
    """A connection that ends at a deadline, however many small reads it is made of."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s())
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _numeric(host: str) -> Sequence[str]:
    """The address that a host stands for without any resolver, in all the ways to write one, as 0x7f.1."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)]
    except (OSError, ValueError):
        return []


def _all_public(addresses: Sequence[str], label: str) -> None:
    if not all(is_public(address) for address in addresses):
        raise UrlError(f"{label} leads into a network that is not public; give one that anybody can reach")


def _write_picture(response: httpcore.Response, path: Path, max_bytes: int, label: str) -> None:
    """The body, if it is a picture within the limit; nothing of it is unpacked."""
    if response.status != 200:
        raise UrlError(f"{label} was answered with status {response.status} instead of a picture")
    if _header(response, b"content-encoding") not in (None, "", "identity"):
        raise UrlError(f"{label} was answered in compressed form, which was not asked for; give another address")
    too_long = UrlError(f"{label} has more than {max_bytes:,} bytes; make it smaller")
    declared = _header(response, b"content-length")
    if declared is not None and int(declared) > max_bytes:
        raise too_long
    head, num_bytes = b"", 0
    with path.open("wb") as file:
        for chunk in response.iter_stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise too_long
            head = (head + chunk[:SNIFFED_BYTES])[:SNIFFED_BYTES]
            if len(head) == SNIFFED_BYTES and not _is_picture(head):
                break
            file.write(chunk)
    if not _is_picture(head):
        raise UrlError(f"{label} does not lead to a picture; accepted are JPEG, PNG and WebP")


def _is_picture(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), None)


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}".lower()
