"""Endpoints as users write them."""

import pytest

from ringmain.endpoint import Endpoint
from ringmain.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port", "tls"),
    [
        ("tcp://127.0.0.1:8000", "127.0.0.1", "8000", False),
        ("tcps://example.org:4000", "example.org", "4000", True),
        ("localhost:http", "localhost", "http", False),
        ("[::1]:0", "::1", "0", False),
        ("tcp://[fe80::1%eth0]:65535", "fe80::1%eth0", "65535", False),
        ("tcp://:8000", "", "8000", False),
        (":8000", "", "8000", False),
        ("tcp://0.0.0.0:1/", "0.0.0.0", "1", False),
    ],
)
def test_every_documented_form_is_read(text: str, host: str, port: str, tls: bool) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.host, endpoint.port, endpoint.tls) == (host, port, tls)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/in.sock", "/run/in.sock"),
        ("unix:in.sock", "in.sock"),
        ("unix:./with blanks", "./with blanks"),
        ("unix:///run/in.sock", "/run/in.sock"),
        ("unix:@name", "@name"),
        ("unix:" + "x" * 107, "x" * 107),
    ],
)
def test_a_unix_socket_is_a_path_or_a_name(text: str, path: str) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.path) == ("", "", False, path)
    assert str(endpoint) == endpoint.address == f"unix:{path}"
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", "tcp://", "tcp://host", "::1:80", "[::1]", "[host]:1", "[]:1", "http://host:80"]
    + ["host:65536", "host:-1", "host:+1", "host:1 ", "ho st:1", "tcp://host:1/path", "tcp://host:1?x", "host:\u0661"]
    + ["tcp://user@host:1:2", "tcp:///:1", "tcp://h\x00st:1"]
    + ["unix:", "unix:@", "unix:/run/", "unix://run/in.sock", "unix:/a\x00b", "unix:" + "\u00fc" * 54],
)
def test_anything_else_is_named_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
