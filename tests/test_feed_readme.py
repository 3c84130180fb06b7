"""The README's snippets that feed a parser, run as pasted but for the port."""

import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from feeding import library

README = Path(__file__).parent.parent / "README.md"
EVENTS = b"".join(b'{"event_type":"%s","flow_id":%d}\n' % ((b"dns", b"tls")[n % 2], n) for n in range(1000))
TICKS = b"".join(struct.pack("<Qd", n, n / 2) for n in range(1000))
SNIPPETS = {
    "decode_lines": (("msgspec",), [EVENTS], r"the last one: Event\(event_type='tls', flow_id=999\)"),
    "record_batches": (("pyarrow", "duckdb"), [EVENTS, EVENTS], r"\['event_type', 'flow_id'\] 1000[^$]*tls[^$]*500"),
    "numpy": (("numpy",), [TICKS], r"highest price: 499\.5"),
    "pandas": (("pandas", "fsspec"), [b"n,m\n" + b"1,2\n" * 1000], r"count +1000\.0"),
}


def snippet(word: str) -> str:
    section = README.read_text().split("## Feed a parser")[1].split("\n## ")[0]
    [code] = [
        code for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if re.search(rf"\b{word}\b", code)
    ]
    return str(code)


@pytest.mark.skipif(not README.exists(), reason="the README is not beside these tests")
@pytest.mark.parametrize("word", SNIPPETS)
def test_a_snippet_runs_as_pasted(word: str) -> None:
    libraries, parts, expected = SNIPPETS[word]
    for name in libraries:
        library(name)
    port = peers.free_port()
    code = snippet(word).replace(":8000", f":{port}")  # which something else may listen at, here too
    assert code != snippet(word)
    dials = word == "pandas"
    listener = socket.create_server(("127.0.0.1", port)) if dials else None
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        for part in parts:
            if listener is not None:
                sock, _ = listener.accept()
                listener.close()
            else:
                peers.wait_for_port(port)
                sock = peers.connect(port)
            with sock:
                sock.sendall(part)
        output, complaints = program.communicate(timeout=peers.TIMEOUT)
    assert complaints == ""
    assert re.search(expected, output), output
