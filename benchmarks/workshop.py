"""What a measurement needs at hand: the compiled baselines, a certificate and a file to send."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
GB = 10**9


class BenchError(Exception):
    """A contender or its surroundings did not do what they should."""


class Workshop:
    """A temporary folder with everything that contenders are made from. Use it as a context manager.

    `words` are what the commands of contenders may name in braces.
    """

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ringmain-bench-")))
        self.missing: dict[str, str] = {}
        self._compile()
        self._certify()
        self._files: dict[int, Path] = {}
        binaries = Path(sys.executable).parent
        self.words = {"c": str(self.folder), "python": sys.executable, "ringmain": str(binaries / "ringmain")}
        nats = binaries / "nats-server"  # where its package puts it
        self.words |= {"cert": str(self.folder / "key_and_cert.pem"), "nats": str(nats if nats.exists() else nats.name)}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _compile(self) -> None:
        """Compile the baselines; those of OpenSSL only where its headers are."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise BenchError("no C compiler; install cc, the sources of streams and baselines are C")
        for source in sorted((HERE / "c").glob("*.c")):
            command = [compiler, "-O2", "-o", str(self.folder / source.stem), str(source)]
            command += {"tls": ["-lssl", "-lcrypto"], "relay": ["-pthread"], "duplex": ["-pthread"]}.get(
                source.stem, []
            )
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and source.stem != "tls":
                raise BenchError(f"{source.name} does not compile: {done.stderr}")
            if done.returncode:
                self.missing["tls"] = "the headers of OpenSSL (libssl-dev)"

    def _certify(self) -> None:
        """Write a key and a certificate for the loopback."""
        try:
            import trustme
        except ImportError:
            self.missing["tls"] = "trustme"
            return
        path = self.folder / "key_and_cert.pem"
        path.touch(0o600)
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))

    def lacks(self, command: str, *, tls: bool) -> str:
        """Return what a contender's command needs and this machine has not, or nothing."""
        if tls and "tls" in self.missing:
            return self.missing["tls"]
        program = command.split()[0]
        if not program.startswith("{") and shutil.which(program) is None:
            return program
        if "{to}/log" in command or "log_clients" in command:
            if shutil.which(self.words["nats"]) is None:
                return "nats-server"
            if not _is_installed("nats"):
                return "nats-py"
        if "aiofastnet" in command and not _is_installed("aiofastnet"):
            return "aiofastnet"
        return ""

    def file(self, size: int) -> Path:
        """Return a file of `size` bytes of the pattern, in memory where there is room, so that no disk is measured."""
        if size not in self._files:
            shared = Path("/dev/shm")
            roomy = shared.is_dir() and min(shutil.disk_usage(shared).free, _free_memory()) > 1.5 * size
            folder = tempfile.TemporaryDirectory(prefix="ringmain-bench-", dir=shared if roomy else None)
            path = self._files[size] = Path(self._stack.enter_context(folder)) / "stream"
            with path.open("wb") as file:
                subprocess.run([self.folder / "send", "0", str(size), str(1 << 20), "0"], stdout=file, check=True)
        return self._files[size]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _free_memory() -> int:
    """Return how many bytes processes can have without others being written out."""
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
