"""Addresses that users write: none leads into the farm's network, none can hold the farm up."""

import gzip
import io
import ipaddress
import itertools
import random
import socket
import threading

import httpcore
import httpx
import pytest
from PIL import Image

from receivers import PUBLIC, Network, serving, tls_contexts
from sakuga.api.guarded import AddressGuard, FetchLimits, is_public
from sakuga.errors import OutputError, UrlError

URL = "https://pictures.test/picture"
QUICK = FetchLimits(max_bytes=100_000, total_s=0.4)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def compressed(handler) -> None:
    handler.reply(200, gzip.compress(bytes(50_000_000)), {"Content-Encoding": "gzip"})


def slow_head(handler) -> None:
    handler.dribble(itertools.chain([b"HTTP/1.1 200 OK\r\nX-Slow: "], itertools.repeat(b"x")), 0.02)


def slow_body(handler) -> None:
    handler.reply(200, picture()[:20], {"Content-Length": "100000"})
    handler.dribble(itertools.repeat(b"x"), 0.02)


def endless(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.dribble(itertools.chain([picture()], itertools.repeat(bytes(65536))), 0)


def endless_and_chunked(handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    head = picture()[:16]
    handler.dribble(itertools.chain([b"10\r\n" + head + b"\r\n"], itertools.repeat(b"1000\r\n%b\r\n" % bytes(4096))), 0)


def to(target: str, status: int = 302):
    return lambda handler: handler.reply(status, b"<html>moved</html>", {"Location": target})


def stream_of_notices(handler) -> None:
    handler.dribble(itertools.repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n"), 0.01)


ROUTES = {
    "/picture": lambda handler: handler.reply(200, picture()),
    "/html": lambda handler: handler.reply(200, b"<html>" + bytes(1000), {"Content-Type": "image/png"}),
    "/empty": lambda handler: handler.reply(200),
    "/short": lambda handler: handler.reply(200, b"\x89PNG"),
    "/missing": lambda handler: handler.reply(404, picture()),
    "/declared": lambda handler: handler.reply(200, picture(), {"Content-Length": "100001"}),
    "/too-few": lambda handler: handler.reply(200, picture(), {"Content-Length": "9000"}),
    "/no-length": lambda handler: handler.reply(200, picture(), {"Content-Length": "-5"}),
    "/digits": lambda handler: handler.reply(200, picture(), {"Content-Length": "9" * 5000}),
    "/no-http": lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "/hang-up": lambda handler: None,
    "/gzip": compressed,
    "/slow-head": slow_head,
    "/slow-body": slow_body,
    "/endless": endless,
    "/chunked": endless_and_chunked,
    "/notices": stream_of_notices,
    "/loop": to("/loop"),
    "/to-relative": to("picture", 307),
    "/to-other": to("https://other.test/picture", 301),
    "/to-loopback": to("https://127.0.0.1/picture"),
    "/to-private": to("https://inside.test/picture"),
    "/to-http": to("http://pictures.test/picture"),
    "/to-file": to("file://localhost/etc/passwd"),
    "/to-user": to("https://user:word@pictures.test/picture"),
    "/to-nothing": to("https://0177.0.0.1/"),
    "/no-target": lambda handler: handler.reply(302),
    **{f"/hop{n}": to(f"/hop{n - 1}") for n in range(1, 11)},
    "/hop0": lambda handler: handler.reply(200, picture()),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return tls_contexts(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(tls):
    with serving(ROUTES, tls[0]) as running:
        yield running


@pytest.fixture
def network(server):
    return Network(server.port)


@pytest.fixture
def guard(tls, network):
    return AddressGuard(resolver=resolve, ssl_context=tls[1], network=network)


def resolve(host: str, port: int) -> list[str]:
    inside = {"inside.test": ["10.0.0.7"], "mixed.test": [PUBLIC, "10.0.0.7"], "none.test": []}
    if host == "unknown.test":
        raise socket.gaierror("unknown")
    return inside.get(host, [PUBLIC])


def refused(call, *arguments, **options) -> str:
    """The sentence; it names no address and no place that the user did not write."""
    with pytest.raises(UrlError) as caught:
        call(*arguments, label="image_url", **options)
    message = caught.value.message
    assert "image_url" in message
    for secret in ("127.", "10.0.", "169.254", PUBLIC, "inside", "other.test", "passwd"):
        assert secret not in message
    return message


def test_a_picture_comes_over_the_address_that_was_checked(guard, network, server, tmp_path):
    assert guard.fetch_picture(URL, tmp_path / "a", label="image_url").read_bytes() == picture()
    assert network.dialled == [(PUBLIC, 443)]
    host, sni, path, headers, _ = server.seen[-1]
    assert (host, sni, path) == ("pictures.test", "pictures.test", "/picture")
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("file://localhost/etc/passwd", "must begin with https"),
        ("gopher://pictures.test/", "must begin with https"),
        ("ftp://pictures.test/", "must begin with https"),
        ("http://pictures.test/", "must begin with https"),
        ("//pictures.test/", "must begin with https"),
        ("pictures.test", "must begin with https"),
        ("data:image/png;base64,iVBORw0KGgo=", "must begin with https"),
        ("", "must begin with https"),
        ("https://127.0.0.1/", "not public"),
        ("https://[::1]/", "not public"),
        ("https://0/", "full host name"),
        ("https://2130706433/", "full host name"),
        ("https://0x7f.1/", "not public"),
        ("https://0177.0.0.1/", "not an address"),
        ("https://127.1./", "not public"),
        ("https://[::ffff:127.0.0.1]/", "not public"),
        ("https://[::ffff:7f00:1]/", "not public"),
        ("https://[64:ff9b::10.0.0.7]/", "not public"),
        ("https://[2002:7f00:1::]/", "not public"),
        ("https://[fe80::1%25eth0]/", "full host name"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://localhost./", "full host name"),
        ("https://localhost/", "full host name"),
        ("https:///picture", "full host name"),
        ("https://pictures.test:22/", "port"),
        ("https://pictures.test:99999/", "port"),
        ("https://user@pictures.test/", "user name"),
        ("https://user:word@pictures.test/", "user name"),
        ("https://pictures.test\\@127.0.0.1/", "user name"),
        ("https://１２７.0.0.1/", "not an address"),
        ("https://ⓔxample.test/", "not an address"),
        ("https://pic tures.test\x00/", "not an address"),
        ("https://pictures.test\r\nX: y/", "not an address"),
        ("https://[/", "full host name"),
        ("https://" + "a" * 3000, "3008 characters"),
    ],
)
def test_addresses_that_are_refused_before_anything_is_dialled(guard, network, url, sentence):
    assert sentence in refused(guard.check, url)
    assert network.dialled == []


@pytest.mark.parametrize(
    "url, host",
    [
        ("https://pictures.test./picture", "pictures.test"),
        ("https://PICTURES.test:443/picture#part", "pictures.test"),
        ("https://bücher.test/picture", "xn--bcher-kva.test"),
        ("https://bücher。test/picture", "xn--bcher-kva.test"),
    ],
)
def test_names_in_other_writing_are_dialled_in_one(guard, server, tmp_path, url, host):
    guard.fetch_picture(url, tmp_path / "a", label="image_url")
    assert server.seen[-1][:3] == (host, host, "/picture")


@pytest.mark.parametrize("name", ["inside", "mixed"])
def test_every_answer_of_a_name_must_be_public(guard, network, tmp_path, name):
    assert "not public" in refused(guard.fetch_picture, f"https://{name}.test/picture", tmp_path / "a")
    assert network.dialled == []


@pytest.mark.parametrize("name", ["unknown", "none"])
def test_a_name_without_an_address(guard, tmp_path, name):
    assert "not known" in refused(guard.fetch_picture, f"https://{name}.test/", tmp_path / "a")


def test_a_name_that_is_too_long_for_any_resolver(tls, network, tmp_path):
    guard = AddressGuard(ssl_context=tls[1], network=network)
    assert "not known" in refused(guard.fetch_picture, f"https://{'a' * 80}.test/", tmp_path / "a")


def test_a_name_that_changes_its_answer_gains_nothing(tls, network, tmp_path):
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return [PUBLIC] if len(asked) == 1 else ["127.0.0.1"]

    guard = AddressGuard(resolver=rebinding, ssl_context=tls[1], network=network)
    guard.fetch_picture(URL, tmp_path / "a", label="image_url")
    assert (asked, network.dialled) == (["pictures.test"], [(PUBLIC, 443)])
    asked.clear()
    assert "not public" in refused(guard.fetch_picture, "https://pictures.test/to-relative", tmp_path / "b")
    assert (len(asked), len(network.dialled)) == (2, 2)


def test_the_certificate_is_checked(network, tmp_path):
    guard = AddressGuard(resolver=resolve, network=network)
    assert "could not be reached" in refused(guard.fetch_picture, URL, tmp_path / "a")
    assert network.dialled == [(PUBLIC, 443)]


def test_the_next_address_is_dialled_when_one_is_dead(tls, server, tmp_path):
    class HalfDead(Network):
        def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
            if host == "1.1.1.1":
                raise httpcore.ConnectError("refused")
            return super().connect_tcp(host, port, timeout, local_address, socket_options)

    network = HalfDead(server.port)
    guard = AddressGuard(resolver=lambda *_: ["1.1.1.1", PUBLIC], ssl_context=tls[1], network=network)
    guard.fetch_picture(URL, tmp_path / "a", label="image_url")
    guard = AddressGuard(resolver=lambda *_: ["1.1.1.1"], ssl_context=tls[1], network=network)
    assert "could not be reached" in refused(guard.fetch_picture, URL, tmp_path / "b")


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("html", "does not lead to a picture"),
        ("empty", "does not lead to a picture"),
        ("short", "does not lead to a picture"),
        ("missing", "status 404"),
        ("declared", "more than 100,000 bytes"),
        ("too-few", "broke off"),
        ("no-length", "broke off"),
        ("digits", "broke off"),
        ("no-http", "broke off"),
        ("hang-up", "broke off"),
        ("gzip", "compressed"),
        ("slow-head", "in time"),
        ("slow-body", "in time"),
        ("notices", "in time"),
        ("endless", "more than 100,000 bytes"),
        ("chunked", "more than 100,000 bytes"),
        ("loop", "more than 3 times"),
        ("hop10", "more than 3 times"),
        ("to-loopback", "not public"),
        ("to-private", "not public"),
        ("to-http", "must begin with https"),
        ("to-file", "must begin with https"),
        ("to-user", "user name"),
        ("to-nothing", "no address of the web"),
        ("no-target", "status 302"),
    ],
)
def test_answers_that_are_no_picture(guard, server, tmp_path, path, sentence):
    before = len(server.seen)
    url = f"https://pictures.test/{path}"
    assert sentence in refused(guard.fetch_picture, url, tmp_path / "a", limits=QUICK)
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) - before <= 4


@pytest.mark.parametrize("path", ["to-relative", "to-other", "hop3"])
def test_some_redirects_are_followed(guard, tmp_path, path):
    url = f"https://pictures.test/{path}"
    assert guard.fetch_picture(url, tmp_path / "a", label="image_url").read_bytes() == picture()


def test_a_server_that_never_ends_the_handshake(tls, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        guard = AddressGuard(resolver=resolve, ssl_context=tls[1], network=Network(listener.getsockname()[1]))
        assert "in time" in refused(guard.fetch_picture, URL, tmp_path / "a", limits=QUICK)


def test_a_resolver_that_never_answers(network, tmp_path):
    over = threading.Event()
    guard = AddressGuard(resolver=lambda *_: [str(over.wait())], network=network)
    try:
        assert "in time" in refused(guard.fetch_picture, URL, tmp_path / "a", limits=QUICK)
    finally:
        over.set()


def test_a_place_that_cannot_be_written_is_not_the_addresses_fault(guard, tmp_path):
    with pytest.raises(OutputError):
        guard.fetch_picture(URL, tmp_path / "none" / "a", label="image_url")


def test_only_the_origins_that_the_operator_names_are_reached_inside(tmp_path):
    with serving(ROUTES) as inside, serving(ROUTES) as other:
        guard = AddressGuard(trusted_origins=[f"http://127.0.0.1:{inside.port}"])
        url = f"http://127.0.0.1:{inside.port}/picture"
        assert guard.fetch_picture(url, tmp_path / "a", label="image_url").read_bytes() == picture()
        for url in (
            f"http://127.0.0.1:{other.port}/picture",
            f"https://127.0.0.1:{inside.port}/picture",
            f"http://localhost:{inside.port}/picture",
            f"http://127.0.0.1:{inside.port}/to-loopback",
        ):
            refused(guard.fetch_picture, url, tmp_path / "b")
        assert other.seen == []


def test_a_post_follows_nothing_and_reads_no_body(guard, server):
    reply = guard.post("https://pictures.test/to-other", b"{}", {"X-Sign": "1"}, total_s=5, label="webhook_url")
    assert (reply.status, reply.retry_after) == (301, None)
    assert guard.post("https://pictures.test/endless", b"{}", {}, total_s=5, label="webhook_url").status == 200
    *_, path, headers, body = server.seen[-2]
    assert (path, headers["X-Sign"], body) == ("/to-other", "1", b"{}")
    assert "in time" in refused(
        lambda label: guard.post("https://pictures.test/slow-head", b"{}", {}, total_s=0.3, label=label)
    )


SPECIAL = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "100.100.100.200", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "::ffff:0:8.8.8.8", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "100::1",
    "2001::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1", "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", SPECIAL)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.169.0.1", "223.255.255.255",
     "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "64:ff9b::8.8.8.8"],
)  # fmt: skip
def test_addresses_that_are_public(address):
    assert is_public(address)


def test_nothing_that_the_standard_library_calls_private_is_public():
    draw = random.Random(4)
    for _ in range(20_000):
        address = ipaddress.IPv4Address(draw.getrandbits(32))
        assert address.is_global or not is_public(str(address)), address
        address = ipaddress.IPv6Address(
            draw.choice((0x2001, 0x2002, 0x3FFF, 0xFE80, 0xFC00)) << 112 | draw.getrandbits(112)
        )
        assert address.is_global or not is_public(str(address)), address


def test_the_parser_of_the_check_is_the_one_of_the_request(guard):
    """One parse, whose parts are dialled: no second opinion on where a host ends."""
    parsed = guard.check("https://pictures.test/a?b=https://127.0.0.1/#@127.0.0.1", label="image_url")
    assert (parsed.host, parsed.raw_path) == ("pictures.test", b"/a?b=https://127.0.0.1/")
    assert isinstance(parsed, httpx.URL)
