"""Let everything that goes on for years go on for half an hour: reopened files, changed certificates, lost connections.

Side by side: a `load --tls-auto` whose file is moved away and reopened by SIGHUP each few seconds, as logrotate does
it, while its certificate is replaced, now and then by a broken one, and clients of both kinds come and go; a `save
--reconnect` and a `relay --reconnect`, plain and TLS, to receivers that are lost each few seconds. Every record has to
come, the right bytes by SHA-256: once and in order into the files, perhaps twice after a loss. Memory and descriptors
are looked at each second: over the last quarter of the time they must be what they were over the second one.

The table at the end tells what has happened and what was held. `make soak` runs it, for SOAK_MINUTES=30.
"""

import argparse
import concurrent.futures
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import peers
from soaking import Broken, Lossy, Rotated, Soak

# What may be more at the end than before: bytes of memory, and descriptors, which come and go with connections.
MORE_MEMORY, MORE_DESCRIPTORS = 4 << 20, 4
# In a shorter run nothing has settled, and memory is shown and not judged.
SETTLED = 120.0


class Watched:
    """Memory and descriptors of all programs over time."""

    def __init__(self, programs: dict[str, peers.Program]) -> None:
        self.samples: dict[str, list[tuple[int, int]]] = {name: [] for name in programs}
        self._programs = programs

    def look(self) -> None:
        """Take note of what each that runs has."""
        for name, program in self._programs.items():
            if program.process.poll() is None:
                with contextlib.suppress(OSError, IndexError):  # it ends just now
                    self.samples[name].append((program.memory("VmRSS"), program.fd_count()))

    def rows(self, *, judged: bool) -> Iterator[tuple[str, bool, str]]:
        """Yield for each its name, whether it has stayed the same, and its figures."""
        for name, samples in self.samples.items():
            if not samples:  # it has ended before the first look
                continue
            quarter = max(1, len(samples) // 4)
            before, after = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
            memory = [statistics.median(it[0] for it in part) for part in (before, after)]
            descriptors = [max(it[1] for it in part) for part in (before, after)]
            flat = memory[1] - memory[0] <= MORE_MEMORY and descriptors[1] - descriptors[0] <= MORE_DESCRIPTORS
            sizes = " -> ".join(f"{it / (1 << 20):.1f}" for it in memory)
            yield name, flat or not judged, f"memory {sizes} MiB, descriptors {descriptors[0]} -> {descriptors[1]}"


def run(soak: Soak, seconds: float) -> int:
    """Run all parts for so long; show the table, and return the exit code."""
    parts: list[Rotated | Lossy] = [Rotated(soak, 4)]
    parts += [Lossy(soak, verb, tls=tls) for verb in ("save", "relay") for tls in (False, True)]
    watched, began, failures = Watched(soak.programs), time.monotonic(), []
    works = [(part.name, work) for part in parts for work in part.work()]
    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        futures = {pool.submit(work): name for name, work in works}
        try:
            while time.monotonic() - began < seconds and not any(it.done() for it in futures):
                time.sleep(min(1.0, seconds / 20))
                watched.look()
        finally:
            soak.over.set()
        for future, name in futures.items():
            try:
                future.result()
            except (Broken, AssertionError, OSError, ValueError, KeyError) as error:
                failures.append(f"{name}: {type(error).__name__}: {error}")
    return summed_up(soak, watched, failures, time.monotonic() - began)


def summed_up(soak: Soak, watched: Watched, failures: list[str], took: float) -> int:
    """Show what has happened and what was held."""
    judged = soak.settles
    say(f"\n{took:.0f} s; " + ", ".join(f"{count} {what}" for what, count in sorted(soak.events.items())))
    for name, size in sorted(soak.bytes.items()):
        say(f"{name:24}  {size / 1e6:10.1f} MB sent")
    if not judged:
        say(f"memory is not judged below {SETTLED:g} s")
    for name, flat, figures in watched.rows(judged=judged):
        say(f"{name:24}  {'flat ' if judged and flat else 'GROWS' if judged else '     '}  {figures}")
        if not flat:
            failures.append(f"{name} grows: {figures}")
    for failure in failures:
        say(f"FAILED  {failure}")
    say("failed" if failures else "every record has come, the right bytes by SHA-256")
    return 1 if failures else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def interrupted(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it takes")
    parser.add_argument("--seed", type=int, help="of what is left to chance")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes is above 0")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    say(f"Python {sys.version.split()[0]}, {options.minutes:g} minutes, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="ringmain-soak-") as folder, peers.bench(Path(folder)) as bench:
        seconds = 60 * options.minutes
        return run(Soak(bench, seed, settles=seconds >= SETTLED), seconds)


if __name__ == "__main__":
    sys.exit(main())
