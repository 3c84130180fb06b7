"""Distributed logs as endpoints: pip install 'ringmain[nats]'. Nothing here is imported unless one is used."""

from ringmain.errors import UsageError, reason

try:
    import nats  # noqa: F401
except ImportError as error:
    raise UsageError(
        "a nats:// endpoint", f"it needs nats-py ({reason(error)})", "pip install 'ringmain[nats]'"
    ) from error
