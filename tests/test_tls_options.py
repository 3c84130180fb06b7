"""Options of TLS that make no sense, or that nothing would come of: which are refused, and which only warned of."""

from pathlib import Path
from typing import Any

import peers
import pytest

import ringmain
from ringmain.errors import UsageError

PIN = "ab" * 32


@pytest.mark.parametrize("verb", ["load", "save", "relay"])
@pytest.mark.parametrize("option", ["client-ca", "crl", "fingerprint"])
def test_what_asks_for_verified_peers_is_refused_where_nobody_is_verified(
    bench: peers.Bench, verb: str, option: str
) -> None:
    value = PIN if option == "fingerprint" else "x.pem"
    if verb == "relay":
        arguments = [f"--destination-{option}", value, "tcp://127.0.0.1:0", "tcp://127.0.0.1:1"]
        flag, remedy = f"--destination-{option}", "a tcps:// endpoint"
    else:
        arguments, flag, remedy = [f"--{option}", value, "tcp://127.0.0.1:0"], f"--{option}", "--tls"
    program = bench.ringmain(verb, "-q", *arguments)
    assert program.wait() == 2
    words = f"{flag}: this endpoint is plain TCP, which cannot verify a peer; give {remedy}, or leave it out"
    assert program.stderr == f"ringmain: {words}\n"


def test_a_relay_to_a_file_refuses_them_too(bench: peers.Bench, tmp_path: Path) -> None:
    relay = bench.ringmain("relay", "--source-client-ca", "x.pem", "tcp://127.0.0.1:0", tmp_path / "out")
    assert relay.wait() == 2
    assert "--source-client-ca: this endpoint is plain TCP" in relay.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"client_ca": "x.pem"}, {"crl": "x.pem"}, {"fingerprint": PIN}])
@pytest.mark.parametrize("verb", ["load", "save", "connect", "serve", "relay"])
def test_the_library_refuses_them_too(verb: str, options: dict[str, Any], run: Any) -> None:
    async def use() -> None:
        url = "tcp://127.0.0.1:0"
        if verb == "relay":
            thing: Any = ringmain.relay(url, url, source_tls=ringmain.TlsSettings(**options))
        elif verb == "serve":
            thing = ringmain.serve(url, lambda _: None, **options)
        else:
            thing = getattr(ringmain, verb)(url, **options)
        async with thing:
            pass

    with pytest.raises(UsageError, match=f"{next(iter(options))}=: this endpoint is plain TCP"):
        run(use())


def test_quiet_does_not_hide_that_nothing_is_encrypted(bench: peers.Bench) -> None:
    loader, port = bench.listening("load", "-q", "-o", "--certfile", "missing.pem", "--keyfile", "missing.pem")
    peers.connect(port).close()
    assert loader.wait() == 0
    said = "ringmain: --certfile, --keyfile: ignored without --tls, nothing is encrypted\n"
    assert loader.stderr == said + f"listening on tcp://127.0.0.1:{port}\n"


def test_several_processes_tell_that_once(bench: peers.Bench, tmp_path: Path) -> None:
    options = ["--processes", 2, "--max-connections", 2, "--output", tmp_path / "{process}"]
    loader, _ = bench.listening("load", *options, "--certfile", "missing.pem")
    loader.signal(15)
    assert loader.wait() == 143
    assert loader.stderr.count("nothing is encrypted") == 1


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        (
            "load",
            ["--client-cert", "optional"],
            "--client-cert optional: clients are not asked for a certificate; give --client-ca too",
        ),
        (
            "load",
            ["--client-cert", "optional", "--client-ca", "x", "--fingerprint", PIN],
            "--client-cert optional: clients without a certificate would pass, despite --fingerprint; leave one of",
        ),
        ("load", ["--crl", "x"], "--crl: revocation lists need a CA that verifies the peer"),
        ("save", ["--crl", "x", "--insecure"], "; give --cafile too, not --insecure"),
        ("save", ["--crl", "x", "--fingerprint", PIN], "; give --cafile too\n"),
        ("save", ["--fingerprint", PIN[2:]], f"--fingerprint '{PIN[2:]}': not the 64 hexadecimal digits of a SHA-256"),
        ("save", ["--fingerprint", "g" + PIN[1:]], "not the 64 hexadecimal digits of a SHA-256; see: openssl x509"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(
    bench: peers.Bench, verb: str, arguments: list[str], words: str
) -> None:
    listens = ["--self-signed"] if verb == "load" else []
    program = bench.ringmain(verb, *listens, *arguments, "tcps://127.0.0.1:0" if listens else "tcps://127.0.0.1:1")
    assert program.wait() == 2
    assert words in program.stderr
    assert [line for line in program.stderr.splitlines() if "self-signed certificate" not in line][1:] == []


def test_a_certificate_of_ours_and_one_that_is_made_are_not_both_taken(bench: peers.Bench) -> None:
    program = bench.ringmain("load", "--self-signed", "--certfile", "x.pem", "tcps://127.0.0.1:0")
    assert program.wait() == 2
    assert "--self-signed with --certfile: it makes a certificate of its own; leave one of them out" in program.stderr
