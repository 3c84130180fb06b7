"""Which signals end us: one list for the start of the command line and for its runs."""

import os
import signal

# What the kernel raises for a fault of our own, and what ends nobody.
_FAULTS = {"SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"}
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGKILL"}
_KEPT = {getattr(signal, name).value for name in _FAULTS | _HARMLESS if hasattr(signal, name)}


def end_at_once(number: int, _: object) -> None:
    """Handle a signal while there is nothing to save: end the process without a traceback."""
    os._exit(128 + number)


def terminating() -> list[int]:
    """Return the signals that would end this process if nobody handled them, and that can be caught.

    One that was ignored when we started, as nohup does with SIGHUP, is not among them, nor one that somebody else has
    set a handler for. Python itself ignores SIGPIPE and SIGXFSZ: a write that meets the limit fails, and says why.
    """
    ours = (signal.SIG_DFL, signal.default_int_handler, end_at_once)
    return [int(number) for number in sorted(signal.valid_signals() - _KEPT) if signal.getsignal(number) in ours]
