"""A web server on this machine that misbehaves as told, reached under public names through a network of its own.

The names end in `.test`; `Network` dials the server whatever public address it is given and keeps what it was given.
"""

import contextlib
import datetime
import http.server
import ssl
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import httpcore
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("pictures.test", "other.test", "xn--bcher-kva.test")
PUBLIC = "93.184.216.34"


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives each request to the function of its path."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.close_connection = True
        sni = getattr(self.request, "sakuga_sni", None)
        self.server.seen.append((self.headers.get("Host"), sni, self.path, dict(self.headers), self.body))
        with contextlib.suppress(OSError):  # the other side has had enough
            self.server.routes[self.path.split("?")[0]](self)

    do_GET = do_POST = answer

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def dribble(self, pieces: Iterable[bytes], every_s: float) -> None:
        """Pieces with a pause in between, until the other side or the test has had enough."""
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            if self.server.over.wait(every_s):
                return

    def log_message(self, format: str, *args: object) -> None:
        return


class Server(http.server.ThreadingHTTPServer):
    """Answers by `routes`; a path that is not there ends the connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, routes: Mapping[str, Callable[[Handler], None]], context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes = routes
        self.seen: list[tuple] = []
        self.over = threading.Event()
        self._context = context

    @property
    def port(self) -> int:
        return self.server_address[1]

    def finish_request(self, request, client_address) -> None:
        if self._context is not None:  # in the thread of this connection: a slow handshake holds nobody else
            try:
                request = self._context.wrap_socket(request, server_side=True)
            except OSError:
                return
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        return


@contextlib.contextmanager
def serving(
    routes: Mapping[str, Callable[[Handler], None]], context: ssl.SSLContext | None = None
) -> Generator[Server]:
    server = Server(routes, context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Network(httpcore.NetworkBackend):
    """Dials one local port in place of every public address, and keeps the addresses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._real = httpcore.SyncBackend()
        self.dialled: list[tuple[str, int]] = []

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.dialled.append((host, port))
        return self._real.connect_tcp("127.0.0.1", self._port, timeout, local_address, socket_options)


def tls_contexts(folder: Path, names: Iterable[str] = NAMES) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server with a certificate for `names`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)

    def keep_name(connection: ssl.SSLObject, sni: str | None, context: ssl.SSLContext) -> None:
        connection.sakuga_sni = sni  # type: ignore[attr-defined]  # for Handler.answer

    server.sni_callback = keep_name
    client = ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode())
    return server, client
