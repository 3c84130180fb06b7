"""Start the command line. What is imported before the signals are set is kept to a minimum."""

import contextlib
import gc
import io
import os
import signal
import sys

from ringmain.cli.signals import end_at_once, hear_later, heeded, terminating
from ringmain.errors import reason
from ringmain.terminal import write_whole_texts


def hold_standard_descriptors() -> None:
    """Open /dev/null wherever standard input, output or error was closed: else the next socket gets that number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without a letter that a name has: as standard error is
        sys.stdout.reconfigure(errors="backslashreplace")
    write_whole_texts()


def main() -> None:
    """Run the command line; it exits the process."""
    gc.disable()  # imports leave no garbage, and looking for it takes a tenth of them; `cli.session` enables it again
    # Until the event loop takes over there is nothing to save: a signal ends the process without a traceback.
    later = heeded()
    for number in terminating():
        signal.signal(number, hear_later if number in later else end_at_once)
    hold_standard_descriptors()
    try:
        from ringmain.cli.commands import run
    except (ImportError, TypeError) as error:  # no click, or an old one that others brought
        line = f"ringmain: the command cannot start: {reason(error)}; pip install 'ringmain[cli]'\n"
        with contextlib.suppress(OSError):
            sys.stderr.write(line)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
