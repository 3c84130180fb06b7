"""What Prometheus is told of a run: which metrics there are, and what they are made of when they are asked for.

Nothing is counted for them: they are read from what the verbs, their listeners and the stats file count anyway.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ringmain.outcome import Cause, Unserved, Verdict

if TYPE_CHECKING:
    from ringmain.cli.renewal import Renewal
    from ringmain.cli.stats import Present, Totals

# By name: a number, or one for each value of a label. As JSON other processes tell them.
Told = dict[str, float | Mapping[str, float]]

_COUNTED = ("reads", "stalls", "stalled_seconds", "skipped_records", "skipped_bytes", "dropped_bytes")
_REFUSALS = (Cause.NOT_ALLOWED, Cause.BUSY, Cause.SILENT)
_HANDSHAKES = (Cause.UNTRUSTED, Cause.TIMED_OUT, Cause.TLS, Cause.OTHER)


class Kind(NamedTuple):
    """A metric: what it tells, its label, if it has one, and whether it counts, or may fall too."""

    help: str
    label: str = ""
    counts: bool = True


# A label has but a few values, and none that a peer chooses.
KINDS = {
    "connections": Kind("Connections that were served, or are; in a relay a client and the one made for it are one."),
    "connections_open": Kind("Connections that are served right now.", counts=False),
    "connections_ended": Kind("Connections that have ended, by how.", "verdict"),
    "connections_refused": Kind("Clients that were turned away before a word was exchanged, by cause.", "cause"),
    "handshake_failures": Kind("Clients whose TLS handshake, or PROXY header, has failed, by cause.", "cause"),
    "probes": Kind("Clients that closed before a byte of a TLS handshake, as health checks do."),
    "connect_failures": Kind("Tries to connect that have failed."),
    "reconnects": Kind("Connections that were made again after one was lost."),
    "bytes": Kind("Bytes that came in and went out, or that went there and back.", "direction"),
    "reads": Kind("Reads that have brought bytes."),
    "stalls": Kind("How often reading had to wait, since what was read could not be passed on."),
    "stalled_seconds": Kind("How long it waited so, of waits that are over."),
    "skipped_records": Kind("Records that were left out, since they were too long."),
    "skipped_bytes": Kind("Their bytes."),
    "dropped_bytes": Kind("Bytes of last records that had no end, which were thrown away."),
    "buffer_fullness_ratio": Kind("How full the buffers are between the two sides, from 0 to 1.", counts=False),
    "certificate_expiry_timestamp_seconds": Kind(
        "When our own certificate in use expires (not-after), in Unix time.", "end", counts=False
    ),
    "reopenings": Kind("How often files were reopened."),
    "certificate_reloads": Kind("How often certificates were read again, by how it went.", "result"),
}


def figures(
    totals: "Totals",
    here: "Present",
    moved: Mapping[str, float],
    fullness: float,
    renewal: "Renewal | None",
) -> Told:
    """Return all that one process has to tell of itself; `moved` are bytes by direction."""
    row, brought = totals.row(here), totals.brought(here)
    return {
        "connections": row["accepted"],
        "connections_open": row["connections"],
        "connections_ended": {verdict: totals.verdicts[verdict] for verdict in Verdict},
        **told_of_clients(here.unserved),
        "connect_failures": here.connect_failures,
        "reconnects": here.reconnects,
        "bytes": moved,
        **{name: brought[name] for name in _COUNTED},
        "buffer_fullness_ratio": fullness,
        **told_of_files(renewal, here.not_after),
    }


def told_of_clients(unserved: Unserved) -> Told:
    """Return what is told of clients that were not served."""
    return {
        "connections_refused": {cause: unserved[cause] for cause in _REFUSALS},
        "handshake_failures": {cause: unserved[cause] for cause in _HANDSHAKES},
        "probes": unserved.probes,
    }


def told_of_files(renewal: "Renewal | None", not_after: Mapping[str, int | None]) -> Told:
    """Return what is told of what may be taken up anew; `not_after` are the certificates' of each end."""
    told: Told = {"certificate_expiry_timestamp_seconds": {end: it for end, it in not_after.items() if it}}
    if renewal is not None:
        told |= {"reopenings": renewal.reopenings, "certificate_reloads": dict(renewal.reloads)}
    return told


def summed(all_figures: Iterable[Told]) -> Told:
    """Return the sums of what several processes tell."""
    sums: dict[str, Any] = {}
    for told in all_figures:
        for name, value in told.items():
            if isinstance(value, Mapping):
                labels = sums.setdefault(name, {})
                for label, number in value.items():
                    labels[label] = labels.get(label, 0) + number
            else:
                sums[name] = sums.get(name, 0) + value
    return sums
