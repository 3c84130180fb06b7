"""What the tests of `ringmain bench` share: a server, and clients whose JSON is held against the schema."""

import json
import subprocess
from importlib.resources import files
from typing import Any

import jsonschema
import peers

SCHEMA = json.loads(files("ringmain.bench").joinpath("schema.json").read_text())


def measured(*arguments: Any, code: int = 0, **run: Any) -> dict[str, Any]:
    """Run `ringmain bench ... --json` to its exit code; return what it printed, which the schema allows."""
    command = [*peers.RINGMAIN, "bench", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **run)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    return checked(done.stdout, code)


def checked(text: str, code: int = 0) -> dict[str, Any]:
    """Return what was printed, which the schema allows, and which tells of an error where the exit code does."""
    result: dict[str, Any] = json.loads(text)
    jsonschema.validate(result, SCHEMA)
    assert ("error" in result) == (code not in (0, 1, 75))
    return result


def serving(bench: peers.Bench, *arguments: Any, scheme: str = "tcp") -> str:
    """Start a server; return its endpoint."""
    _, port = bench.serving_measurements(*arguments, scheme=scheme)
    return f"{scheme}://127.0.0.1:{port}"
