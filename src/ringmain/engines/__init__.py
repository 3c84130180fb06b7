"""Distributed logs as endpoints: pip install 'ringmain[nats]'. Nothing here is imported unless one is used."""
