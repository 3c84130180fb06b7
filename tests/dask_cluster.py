"""Read a stream by two workers of Dask, of whom one dies when it has some of it: URL and where to write the rows to."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import distributed
import peers
import pyarrow as pa

from ringmain.feeds import dask

peers.TIMEOUT = 240.0  # three Pythons import Pandas meanwhile
SCHEMA = pa.schema([("a", pa.int64())])


def held_up(frame: Any, folder: str) -> Any:
    """Tell that a worker has a part, and go on once one has died."""
    Path(folder, f"{os.getpid()} {frame['a'].min()}").touch()
    peers.eventually(Path(folder, "over").exists, "a death")
    return frame


def main(url: str, result: str) -> None:
    """Compute the rows."""
    parsing = {"unexpected_fields": "ignore"}
    frame = dask.read_nats(url, schema=SCHEMA, partitions=8, parsing=parsing)
    workers: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        distributed.LocalCluster(**workers) as cluster,
        distributed.Client(cluster) as client,
    ):
        rows = client.compute(frame.map_partitions(held_up, folder, meta=frame))

        def pids() -> set[int]:
            return {int(it.name.split()[0]) for it in Path(folder).iterdir()}

        peers.eventually(lambda: len(pids()) == 2, "both to have a part")
        os.kill(min(pids()), 9)
        Path(folder, "over").touch()
        Path(result).write_text(" ".join(map(str, rows.result(timeout=peers.TIMEOUT)["a"])))


if __name__ == "__main__":
    main(*sys.argv[1:])
