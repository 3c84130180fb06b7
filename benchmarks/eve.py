"""Events as Suricata writes them to eve.json: made up, the same for the same seed, and their types for two parsers."""

import json
import random
from pathlib import Path
from typing import Any

SEED = 7


def write_events(path: Path, size: int) -> None:
    """Write whole lines, `size` bytes or a little more."""
    source = random.Random(SEED)
    lines = [_line(source) for _ in range(20_000)]
    with path.open("wb") as file:
        while file.tell() < size:
            source.shuffle(lines)
            file.writelines(lines)


def _line(source: random.Random) -> bytes:
    kind = source.choices(["flow", "dns", "http", "tls", "alert"], [50, 20, 15, 10, 5])[0]
    event: dict[str, Any] = {
        "timestamp": f"2026-03-{source.randint(1, 28):02}T12:00:07.{source.randrange(10**6):06}+0000",
        "flow_id": source.getrandbits(50),
        "in_iface": "eth0",
        "event_type": kind,
        "src_ip": f"10.{source.randrange(256)}.{source.randrange(256)}.{source.randrange(256)}",
        "src_port": source.randrange(65536),
        "dest_ip": f"192.0.2.{source.randrange(256)}",
        "dest_port": source.choice([53, 80, 443, 8080]),
        "proto": source.choice(["TCP", "UDP"]),
    }
    event[kind] = _MAKERS[kind](source)
    return (json.dumps(event) + "\n").encode()


def _flow(source: random.Random) -> dict[str, Any]:
    return {
        "pkts_toserver": source.randrange(1000),
        "pkts_toclient": source.randrange(1000),
        "bytes_toserver": source.randrange(10**6),
        "bytes_toclient": source.randrange(10**6),
        "start": "2026-03-01T12:00:00.000000+0000",
        "end": "2026-03-01T12:00:09.000000+0000",
        "age": source.randrange(100),
        "state": source.choice(["new", "established", "closed"]),
        "reason": "timeout",
        "alerted": source.random() < 0.01,
    }


def _dns(source: random.Random) -> dict[str, Any]:
    name = f"host{source.randrange(10**5)}.example.org"
    answers = [
        {"rrname": name, "rrtype": "A", "ttl": 300, "rdata": f"192.0.2.{n}"} for n in range(source.randrange(1, 4))
    ]
    return {"version": 2, "type": "answer", "id": source.randrange(65536), "rrname": name, "answers": answers}


def _http(source: random.Random) -> dict[str, Any]:
    return {
        "hostname": f"www{source.randrange(1000)}.example.org",
        "url": f'/path/to/page?session={source.getrandbits(64):016x}&quoted="{source.randrange(10)}"',
        "http_user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "http_method": source.choice(["GET", "POST"]),
        "protocol": "HTTP/1.1",
        "status": source.choice([200, 301, 404]),
        "length": source.randrange(10**5),
    }


def _tls(source: random.Random) -> dict[str, Any]:
    return {
        "subject": f"CN=host{source.randrange(1000)}.example.org",
        "issuerdn": "C=US, O=Example Trust, CN=Example Issuing CA 3",
        "serial": f"{source.getrandbits(120):030X}",
        "fingerprint": ":".join(f"{source.randrange(256):02x}" for _ in range(20)),
        "sni": f"host{source.randrange(1000)}.example.org",
        "version": "TLS 1.3",
    }


def _alert(source: random.Random) -> dict[str, Any]:
    return {
        "action": "allowed",
        "gid": 1,
        "signature_id": source.randrange(2_000_000, 2_100_000),
        "rev": source.randrange(10),
        "signature": "ET SCAN Suspicious inbound to a database port",
        "category": "Potentially Bad Traffic",
        "severity": source.randrange(1, 4),
    }


_MAKERS = {"flow": _flow, "dns": _dns, "http": _http, "tls": _tls, "alert": _alert}


def msgspec_type() -> Any:
    """Return the Struct of an event, made from the examples that the generator gives."""
    import msgspec

    return _struct(msgspec, "Event", _merged())


def arrow_schema() -> Any:
    """Return the pyarrow schema of an event."""
    import pyarrow as pa

    return pa.schema([(name, _arrow(pa, value)) for name, value in _merged().items()])


def _merged() -> dict[str, Any]:
    merged: dict[str, Any] = {}
    source = random.Random(SEED)
    for _ in range(1000):
        merged.update(json.loads(_line(source)))
    return merged


def _struct(msgspec: Any, name: str, example: dict[str, Any]) -> Any:
    def kind(field: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _struct(msgspec, field, value)
        return list[kind(field, value[0])] if isinstance(value, list) else type(value)  # type: ignore[misc]

    fields = [(field, kind(field, value) | None, None) for field, value in example.items()]
    return msgspec.defstruct(name, fields, gc=False)


def _arrow(pa: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return pa.struct([(name, _arrow(pa, part)) for name, part in value.items()])
    if isinstance(value, list):
        return pa.list_(_arrow(pa, value[0]))
    return {bool: pa.bool_(), int: pa.int64(), str: pa.string()}[type(value)]
