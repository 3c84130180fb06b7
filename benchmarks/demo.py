"""Move 2 GiB of newline-delimited JSON from `ringmain save` to `ringmain load`, over TCP and then over TLS.

Run by `make demo`. Works in a temporary folder of its own (2 GiB while it runs) and removes it at the end.
"""

import datetime
import hashlib
import ipaddress
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SIZE = 2 << 30
RINGMAIN = str(Path(sys.executable).with_name("ringmain"))


def make_events(path: Path) -> str:
    """Write at least SIZE bytes of NDJSON events and return their SHA-256."""
    lines = []
    for number in range(40_000):
        event = {"timestamp": f"2026-01-01T00:00:{number % 60:02}Z", "event_type": "flow", "flow_id": number * 7919}
        event |= {"src_ip": f"192.0.2.{number % 254 + 1}", "dest_port": number % 65536, "bytes": number * 31 % 100_003}
        lines.append(json.dumps(event))
    chunk = ("\n".join(lines) + "\n").encode()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(-(-SIZE // len(chunk))):
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def make_certificate(path: Path) -> None:
    """Write a key and a certificate for 127.0.0.1 that vouches for itself into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ringmain demo")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )


def start(folder: Path, *arguments: str, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    """Print a ringmain command as one would type it in the folder, and start it there."""
    print("  $ ringmain", shlex.join(arguments), "| sha256sum" if stdout else "", flush=True)
    return subprocess.Popen([RINGMAIN, *arguments], cwd=folder, stdout=stdout)


def move(folder: Path, scheme: str, ours: list[str], theirs: list[str], expected: str) -> None:
    """Run one load and one save; print how fast the bytes went and both SHA-256 sums; end the demo if they differ."""
    address = f"{scheme}://127.0.0.1"
    load = start(folder, "load", "-o", *ours, "--port-file", "port", f"{address}:0", stdout=subprocess.PIPE)
    assert load.stdout is not None
    while not (folder / "port").exists():
        if load.poll() is not None:
            sys.exit(f"demo: ringmain load ended with code {load.returncode} before it listened")
        time.sleep(0.01)
    port = (folder / "port").read_text().strip()
    started = time.monotonic()
    save = start(folder, "save", *theirs, "-I", "events.ndjson", f"{address}:{port}")
    digest, size = hashlib.sha256(), 0
    while chunk := os.read(load.stdout.fileno(), 1 << 20):
        digest.update(chunk)
        size += len(chunk)
    codes = save.wait(), load.wait()
    seconds = time.monotonic() - started
    print(
        f"  {size / 2**30:.2f} GiB in {seconds:.2f} s: {size / seconds / 1e9:.2f} GB/s, start-up and SHA-256 included"
    )
    if codes != (0, 0):
        sys.exit(f"demo: exit codes of save and load {codes}")
    print(f"  sent     SHA-256 {expected}\n  received SHA-256 {digest.hexdigest()}")
    if digest.hexdigest() != expected:
        sys.exit("demo: the bytes received are not the bytes sent")
    print("  both agree\n", flush=True)


def main() -> None:
    """Run the demo."""
    if shutil.disk_usage(tempfile.gettempdir()).free < 3 << 30:
        sys.exit(f"demo: {tempfile.gettempdir()} has less than 3 GiB free; set TMPDIR to a folder that has")
    with tempfile.TemporaryDirectory(prefix="ringmain-demo-") as name:
        folder = Path(name)
        print(f"Making {SIZE >> 30} GiB of newline-delimited JSON ...\n", flush=True)
        expected = make_events(folder / "events.ndjson")
        make_certificate(folder / "key_and_cert.pem")
        print("Over TCP:")
        move(folder, "tcp", [], [], expected)
        print("Over TLS, with a certificate made for this run and verified by the sender:")
        move(folder, "tcps", ["--certfile", "key_and_cert.pem"], ["--cafile", "key_and_cert.pem"], expected)
    print("Three commands to try next:")
    print(f"  {RINGMAIN} load tcp://127.0.0.1:8000 > events.ndjson    # then, elsewhere: nc -N 127.0.0.1 8000 < FILE")
    print(f"  {RINGMAIN} load tcps://127.0.0.1:4000 --self-signed -v  # TLS, to look at who connects")
    print(f"  {RINGMAIN} nics                                         # where one could listen")


if __name__ == "__main__":
    main()
