"""A NATS operator with one account, as nsc makes them, and credentials files of its user."""

import base64
import json
from pathlib import Path
from typing import Any

import peers
from feeding import library

library("nats")
import nkeys  # noqa: E402

_KINDS = (
    nkeys.PREFIX_BYTE_OPERATOR,
    nkeys.PREFIX_BYTE_ACCOUNT,
    nkeys.PREFIX_BYTE_ACCOUNT,
    nkeys.PREFIX_BYTE_USER,
    nkeys.PREFIX_BYTE_USER,
)
_SEEDS = [bytes(nkeys.encode_seed(peers.payload(32, number), kind)) for number, kind in enumerate(_KINDS)]
OURS, ANOTHERS = _SEEDS[3:]
_LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
_STORAGE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


def _key(number: int) -> Any:
    return nkeys.from_seed(bytearray(_SEEDS[number]))


def _name(number: int) -> str:
    return str(_key(number).public_key.decode())


def _signed(issuer: Any, subject: str, kind: str, expires: float | None = None, **limits: Any) -> str:
    """Return a JWT."""

    def part(value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    claims = {"jti": kind, "iat": 1, "iss": issuer.public_key.decode(), "name": kind, "sub": subject}
    claims |= {"exp": int(expires)} if expires is not None else {}
    claims["nats"] = {"type": kind, "version": 2, **limits}
    text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(claims)}"
    return f"{text}.{part(issuer.sign(text.encode()))}"


def configuration() -> str:
    """Return what a server's configuration has to say of them."""
    account = _signed(_key(0), _name(1), "account", limits={**_LIMITS, **_STORAGE})
    system = _signed(_key(0), _name(2), "account", limits=_LIMITS)
    return f"""
        operator: {_signed(_key(0), _name(0), "operator")}
        system_account: {_name(2)}
        resolver: MEMORY
        resolver_preload: {{ {_name(1)}: {account}, {_name(2)}: {system} }}
    """


def write_credentials(path: Path, seed: bytes = OURS, expires: float | None = None) -> Path:
    """Write the user's file, which expires at a time, or never."""
    jwt = _signed(_key(1), _name(3), "user", expires, subs=-1, data=-1, payload=-1)
    lines = ["-----BEGIN NATS USER JWT-----", jwt, "------END NATS USER JWT------", ""]
    lines += ["-----BEGIN USER NKEY SEED-----", seed.decode(), "------END USER NKEY SEED------", ""]
    new = path.with_name(f"{path.name}.new")
    new.touch(mode=0o600)
    new.write_text("\n".join(lines))
    return new.rename(path)
