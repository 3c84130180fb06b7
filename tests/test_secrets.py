"""A password that is given in the wrong place, or in a wrong form, is in no line and no row of ours."""

import json
import subprocess

import peers
import pytest

from ringmain.errors import printable

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nats://ann:s3cr3t@host/X"],
        ["ann:s3cr3t@host:1"],
        ["load", "ann:s3cr3t@host"],
        ["load", "s3cr3t@host:1"],
        ["load", "tcp://127.0.0.1:0", "ann:s3cr3t@host:1"],
        ["load", "--metrics", "ann:s3cr3t@host", "tcp://127.0.0.1:0"],
        ["load", "--metrics", "http://ann:s3cr3t@host:1/metrics", "tcp://127.0.0.1:0"],
        ["load", "--idle-timeout", "nats://ann:s3cr3t@host/X", "tcp://127.0.0.1:0"],
        ["load", "--output", "nats://ann:s3cr3t@host/X", "tcp://127.0.0.1:0"],
        ["load", "--stats-file", "nats://ann:s3cr3t@host/X", "tcp://127.0.0.1:0"],
        ["load", "--port-file", "nats://ann:s3cr3t@host/X", "tcp://127.0.0.1:0"],
        ["load", "--nats://ann:s3cr3t@host/X"],
        ["save", "--input", "nats://ann:s3cr3t@host/X", "tcp://127.0.0.1:0"],
        ["relay", "tcp://127.0.0.1:0", "ssl://ann:s3cr3t@host:1"],
        ["bench", "--json", "ann:s3cr3t@host"],
        ["bench", "--json", "tcp://127.0.0.1:1", "ann:s3cr3t@host"],
    ],
    ids=" ".join,
)
def test_no_error_line_has_the_password_of_what_it_quotes(bench: peers.Bench, arguments: list[str]) -> None:
    pytest.importorskip("prometheus_client")
    program = bench.ringmain(*arguments, stdout=subprocess.PIPE)
    stdout, _ = program.process.communicate(timeout=peers.TIMEOUT)
    assert program.process.returncode in (2, 23, 26)
    assert "..." in program.stderr
    assert SECRET not in program.stderr + stdout.decode()
    assert "--json" not in arguments or "..." in json.loads(stdout)["error"]


def test_a_urls_user_is_in_no_line_and_the_at_of_a_file_or_a_name_is() -> None:
    assert printable("open nats://a:b/c@d@host/X: no") == "open nats://...@host/X: no"
    assert printable("open nats:/a:b@host/X: no") == "open nats:/...@host/X: no"
    for line in ("connect to unix:/run/ann@1000/x", "unix:@events", "ann@example.org", "tcp://a:1: who is ann@b?"):
        assert printable(line) == line
