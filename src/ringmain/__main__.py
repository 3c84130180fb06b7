"""Start the command line. What is imported before the signals are set is kept to a minimum."""

import os
import signal


def main() -> None:
    """Run the command line; it exits the process."""
    # Until the event loop takes over there is nothing to save: a signal ends the process without a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    from ringmain.cli import run

    run()


if __name__ == "__main__":
    main()
