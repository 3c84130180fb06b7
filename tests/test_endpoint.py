"""Endpoints as users write them."""

import re

import pytest

from ringmain.endpoint import Endpoint, LogEndpoint
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
    + ["tcp:///:1", "tcp://h\x00st:1"]
    + ["unix:", "unix:@", "unix:/run/", "unix://run/in.sock", "unix:/a\x00b", "unix:" + "\u00fc" * 54],
)
def test_anything_else_is_named_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("8010", "a port without a host", "write tcp://127.0.0.1:8010, or tcp://:8010 for every interface"),
        ("tcps://8010", "a port without a host", "write tcps://127.0.0.1:8010, or tcps://:8010 for every interface"),
        ("tcp://127.0.0.1", "it has no port", "write tcp://127.0.0.1:PORT"),
        ("[::1]/", "it has no port", "write tcp://[::1]:PORT"),
        ("host:", "it has no port", "write tcp://host:PORT"),
        ("tls://host:1", "a NATS server cannot be used here", "write tcps://host:1 for TLS"),
        ("ssl://host:1", "unknown scheme 'ssl'", "write tcps://host:1 for TLS"),
        ("unix://path", "one slash or three", "write unix:/path, or unix:path for one in the working"),
        ("/run/in.sock", "a path without a scheme", "write unix:/run/in.sock"),
        ("tcp://host:1/path", "a TCP endpoint has no path", "write tcp://host:1"),
    ],
)
def test_what_is_nearly_an_endpoint_is_told_what_it_lacks(text: str, why: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(text)
    assert why in caught.value.why
    assert caught.value.remedy.startswith(remedy)
    meant = re.search(r"write (\S+[^,\s])", caught.value.remedy)[1]
    Endpoint.parse(meant.replace("PORT", "1"))  # the remedy is none that is refused again


@pytest.mark.parametrize("text", ["tcp://host:" + 5000 * "1", "tcp://²", "²"], ids=["long", "tcp", "bare"])
def test_digits_that_are_no_port_are_no_port(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(text)
    assert "a port without a host" not in caught.value.why


def test_a_server_of_tls_is_told_from_one_of_nats() -> None:
    with pytest.raises(UsageError) as caught:
        LogEndpoint.parse("tls://host:1")
    assert caught.value.remedy == "write tls://host:1/NAME, or tcps://host:1 for TLS without NATS"
    with pytest.raises(UsageError, match=r"names no NATS stream.*; write nats://host/NAME$"):
        LogEndpoint.parse("nats://host/")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("host", "tcp://host:5201"), ("tcps://[::1]/", "tcps://[::1]:5201"), ("tcp://10.0.0.5:1", "tcp://10.0.0.5:1")],
)
def test_a_host_alone_has_the_default_port_where_there_is_one(text: str, parsed: str) -> None:
    assert str(Endpoint.parse(text, "5201")) == parsed


def test_a_number_alone_is_no_host_for_a_default_port() -> None:
    with pytest.raises(UsageError, match="a port without a host"):
        Endpoint.parse("8010", "5201")


@pytest.mark.parametrize(
    ("text", "servers", "name", "tls", "user", "password"),
    [
        ("nats://host/EVENTS", ["host:4222"], "EVENTS", False, None, None),
        ("tls://a:1,b,[::1]:3/events.{peer}", ["a:1", "b:4222", "[::1]:3"], "events.{peer}", True, None, None),
        ("nats://ann:p%40ss%2F@a:4222,b:4222/EVENTS", ["a:4222", "b:4222"], "EVENTS", False, "ann", "p@ss/"),
        ("nats://s3cr3t@a/EVENTS", ["a:4222"], "EVENTS", False, "s3cr3t", None),
    ],
)
def test_an_endpoint_of_a_log_is_read_and_written_back_without_its_secrets(
    text: str, servers: list[str], name: str, tls: bool, user: str | None, password: str | None
) -> None:
    endpoint = LogEndpoint.parse(text)
    assert (list(endpoint.servers), endpoint.name, endpoint.tls) == (servers, name, tls)
    assert (endpoint.user, endpoint.password) == (user, password)
    again = LogEndpoint.parse(str(endpoint))
    assert (again.servers, again.name, again.tls) == (endpoint.servers, name, tls)
    for secret in (user, password):
        assert secret is None or (secret not in str(endpoint) and secret not in repr(endpoint))


@pytest.mark.parametrize(
    "text",
    [
        "nats://",
        "nats://host",
        "nats://host/",
        "nats:///NAME",
        "nats://a,,b/NAME",
        "nats://a:0/NAME",
        "nats://a:99999/N",
    ]
    + ["nats://a:x/NAME", "nats://a/TWO WORDS", "nats://@a/NAME", "nats://:secret@a/NAME", "nats://::1/NAME"]
    + [
        "tls://user:secret@host",
        "nats://user:sec/ret@a:x/NAME",
        "nats://user:sec\nret@host",
        "tls://a/b@c",
        "nats://user:sec/ret@a",
        "nats:/user:secret@a:1/NAME",
        "tcp://user:secret@host:1",
        "NATS://user:secret@a:x/NAME",
        "user:secret@host",
        "secret@host:1",
        "tcp://secret@host:1",
        "user:sec ret@host:1",
        "nats:user:secret@a/NAME",
        "[user:secret@::1]:80",
    ],
)
def test_any_other_endpoint_of_a_log_is_told_of_in_one_line_without_its_secrets(text: str) -> None:
    for parse in (LogEndpoint.parse, Endpoint.parse):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert "\n" not in str(caught.value)
        assert "sec" not in str(caught.value)
