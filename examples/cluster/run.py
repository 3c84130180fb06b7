"""Run a whole cluster on one machine: three NATS servers, two edges, three parsers, each a process of its own.

python run.py FOLDER

Whatever of it ends is started again, as systemd or Kubernetes would, until this is interrupted.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PAUSE = 0.5


def commands(folder: Path, nats: list[int], routes: list[int], edges: list[int]) -> dict[str, list[str]]:
    """Return the command of each process, by its name."""
    server = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
    servers = ",".join(f"127.0.0.1:{port}" for port in nats)
    urls = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
    every = {}
    for number, (port, route) in enumerate(zip(nats, routes, strict=True), 1):
        name = f"nats-{number}"
        every[name] = [server, "--name", name, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / name)]
        every[name] += ["--cluster_name", "example", "--cluster", f"nats://127.0.0.1:{route}", "--routes", urls]
    for number, port in enumerate(edges, 1):
        relay = ["relay", "--max-connections", "1000", "--message-size", "1000K", "--retry", "forever"]
        every[f"edge-{number}"] = [sys.executable, "-m", "ringmain", *relay, "--create-stream", "EVENTS:3"]
        every[f"edge-{number}"] += [f"tcp://127.0.0.1:{port}", f"nats://{servers}/events"]
    for number in range(1, 4):
        parser = [sys.executable, str(HERE / "parser.py"), f"nats://{servers}/EVENTS", str(folder)]
        every[f"parser-{number}"] = parser
    return every


def main() -> None:
    """Start all, and start again what ends."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="where the servers and the parsers keep what they have")
    options.add_argument("--nats", type=int, nargs=3, default=[4222, 4223, 4224], metavar="PORT")
    options.add_argument("--routes", type=int, nargs=3, default=[6222, 6223, 6224], metavar="PORT")
    options.add_argument("--edges", type=int, nargs=2, default=[9001, 9002], metavar="PORT")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    every = commands(given.folder, given.nats, given.routes, given.edges)
    running: dict[str, subprocess.Popen[bytes]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            for name, command in every.items():
                if name not in running or running[name].poll() is not None:
                    with (given.folder / f"{name}.log").open("ab") as log:
                        running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                    print(name, running[name].pid, flush=True)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        pass
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


if __name__ == "__main__":
    main()
