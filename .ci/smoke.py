"""Move bytes with the installed ringmain: what a wheel has to do on each Python and C library."""

import threading

import ringmain

DATA = bytes(range(256)) * 4096


def send(port: int) -> None:
    """Send DATA to a listener that has a certificate made for this run."""
    with ringmain.save(f"tcps://127.0.0.1:{port}", insecure=True) as saver:
        saver.write(DATA)


with ringmain.load("tcps://127.0.0.1:0", self_signed=True, listen_once=True) as loader:
    thread = threading.Thread(target=send, args=[loader.port])
    thread.start()
    assert b"".join(map(bytes, loader)) == DATA
thread.join()
