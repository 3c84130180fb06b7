"""Count the events of a stream of newline-delimited JSON by their type.

python src/event_counter.py tcp://127.0.0.1:8000
"""

import sys
from collections import Counter

import msgspec
import ringmain
from ringmain.feeds import msgspec as feed


class Event(msgspec.Struct):
    """What is read of an event; its other fields are skipped."""

    event_type: str


def count_events(endpoint: str, cafile: str | None = None) -> Counter[str]:
    """Connect to the endpoint, read to its end, and return how many events there were of each type."""
    counts: Counter[str] = Counter()
    with ringmain.load(endpoint, connect=True, cafile=cafile, delimiter=b"\n") as loader:
        for events in feed.decode_lines(loader, Event):
            counts.update(event.event_type for event in events)
    return counts


if __name__ == "__main__":
    for event_type, number in count_events(sys.argv[1]).most_common():
        print(f"{number:12} {event_type}")
