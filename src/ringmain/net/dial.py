"""Dial: resolve, try the addresses in turns, shake hands, and try again; and what an accepted connection needs too."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ringmain._tls import bound
from ringmain.endpoint import Endpoint, host_and_port
from ringmain.errors import (
    ConnectError,
    ResolveError,
    RingmainError,
    TimedOutError,
    TlsError,
    UntrustedError,
    UsageError,
    reason,
)
from ringmain.net import unix
from ringmain.net.backoff import Backoff, Tally
from ringmain.net.happy_eyeballs import first_that_answers
from ringmain.net.introduced import Introduced
from ringmain.net.link import Link
from ringmain.net.peer_certificate import check_peer
from ringmain.net.readiness import until
from ringmain.net.receive_buffer import warn_of_less
from ringmain.net.remedies import remedy_for
from ringmain.net.resets import farewell, reset
from ringmain.settings import Settings, check_plain

if TYPE_CHECKING:
    from ringmain.net.renewable import Renewable

_FAMILIES = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
LONGEST_PAUSE = 5.0  # between two tries
_TCP_RTO_MAX_MS = 44  # <linux/tcp.h>


# What goes over a connection before TLS does. It gets the socket and what the peer is called so far.
Preface = Callable[[socket.socket, str], Awaitable[Introduced]]


async def resolve(endpoint: Endpoint, settings: Settings, *, listening: bool) -> list[tuple[Any, ...]]:
    """Return `socket.getaddrinfo` rows for the endpoint, each address once; raise ResolveError when there is none."""
    loop = asyncio.get_running_loop()
    host, flags = endpoint.host, socket.AI_PASSIVE if listening else 0
    family = _FAMILIES[settings.family]
    try:
        if "%" in host:  # uvloop's look-up drops the zone of an address, and there is nothing to look up
            flags |= socket.AI_NUMERICHOST
            rows = socket.getaddrinfo(host, endpoint.port, family, socket.SOCK_STREAM, 0, flags)
        else:
            kind = socket.SOCK_STREAM
            rows = await loop.getaddrinfo(host or None, endpoint.port, family=family, type=kind, flags=flags)
    except (socket.gaierror, UnicodeError) as error:
        what = f"resolve {host_and_port(host, endpoint.port)}"
        why, remedy = reason(error).lower(), "check the host's name"
        if error.args[:1] == (socket.EAI_SERVICE,):
            why, remedy = f"no service is called {endpoint.port!r}", "give the number of a port"
        elif error.args[:1] == (socket.EAI_ADDRFAMILY,):
            remedy = "give an address of the family that you ask for, IPv4 or IPv6"
        elif "%" in host:
            remedy = f"is there an interface {host.partition('%')[2]}? ringmain nics lists them"
        raise ResolveError(what, why, remedy) from error
    return list(dict.fromkeys(rows))


async def dial(
    endpoint: Endpoint,
    settings: Settings,
    context: ssl.SSLContext | None,
    preface: Preface | None = None,
    tally: Tally | None = None,
) -> Link:
    """Connect, trying again `settings.retry` times, and shake hands if there is a TLS context; `tally` counts that."""
    once = functools.partial(dial_once, endpoint, settings, context, preface)
    return await Backoff(LONGEST_PAUSE, tally).keep_trying(once, may_pass, settings.retry)


def may_pass(error: RingmainError) -> bool:
    """Tell whether another try to connect may succeed; a handshake that failed shows a mistake in the settings."""
    return isinstance(error, ResolveError | ConnectError | TimedOutError)


async def dial_once(
    endpoint: Endpoint, settings: Settings, context: ssl.SSLContext | None, preface: Preface | None = None
) -> Link:
    """Connect, and shake hands if there is a TLS context."""
    if endpoint.handed_over:
        why = "a socket that a service manager passes in is for listening"
        raise UsageError(f"connect to {endpoint}", why, "listen there, or give HOST:PORT")
    peer = endpoint.address
    try:
        async with asyncio.timeout(settings.connect_timeout):
            if endpoint.path:
                sock = await unix.connect(endpoint, settings)
            else:
                rows = await resolve(endpoint, settings, listening=False)
                sock = await first_that_answers(rows, peer, settings.receive_buffer)
    except TimeoutError as error:
        what, remedy = f"connect to {peer}", "is it up? is a firewall in between?"
        if error.errno is not None:  # the kernel has given up first
            raise TimedOutError(what, "no answer", remedy) from error
        why = f"no answer within {settings.connect_timeout:g} s"
        raise TimedOutError(what, why, remedy, limit="connect_timeout") from error
    introduced = None
    try:
        warn_of_less(sock, settings.receive_buffer)
        prepare(sock, settings)
        if preface is not None:
            introduced = await preface(sock, peer)
            peer = introduced.peer
        if context is not None:
            name = name_of(settings.server_name or endpoint.host)
            sock = await shake_hands(sock, context, settings, peer, name)
        return Link(sock, peer, introduced, settings.prefix)
    except BaseException:
        sock.close()
        raise


def context_for(endpoint: Endpoint, settings: Settings, *, listening: bool) -> "Renewable | None":
    """Return how the connections of an endpoint are protected, None for plain TCP; raise what is wrong with a file."""
    if not (endpoint.tls or settings.tls):
        remedy = "a tcps:// endpoint" if settings.prefix else "tls=True"
        check_plain(vars(settings), settings.prefix, remedy)
        return None
    from ringmain.net.tls import renewable_context

    return renewable_context(settings, listening=listening)


def name_of(host: str) -> str:
    """Return the name that a certificate has for a host: without the dot at its end, or the zone of an address."""
    return host.partition("%")[0] if ":" in host else host.removesuffix(".")


def prepare(sock: socket.socket, settings: Settings) -> None:
    """Set what every connection of TCP wants: no Nagle delay, and probes that find out when the peer is gone."""
    if sock.family == socket.AF_UNIX:  # whose peer cannot be gone without our kernel knowing
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if settings.keepalive is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        idle = max(1, round(settings.keepalive))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 4))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        with contextlib.suppress(OSError):  # Linux 6.15; else two minutes may lie between two probes of a closed window
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, min(120_000, idle * 1000))


def handshake_timed_out(peer: str, settings: Settings) -> TimedOutError:
    """Return the error of a peer that takes too long."""
    why = f"not done within {settings.handshake_timeout:g} s"
    remedy = "with tls_auto=True a client must send first;" if settings.tls_auto else "does it speak TLS?"
    return TimedOutError(f"TLS handshake with {peer}", why, remedy, limit="handshake_timeout")


async def shake_hands(
    sock: socket.socket,
    context: ssl.SSLContext,
    settings: Settings,
    peer: str,
    server_name: str | None = None,
    *,
    spent: float = 0.0,
) -> ssl.SSLSocket:
    """Return the socket under TLS, as client when there is a server name, else as server; close it on failure.

    Of `settings.handshake_timeout` so many seconds are `spent` already.
    """
    what, timeout = f"TLS handshake with {peer}", settings.handshake_timeout
    try:
        tls_sock = context.wrap_socket(
            sock,
            server_side=server_name is None,
            server_hostname=server_name or None,  # a UNIX socket has no name of its own
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except (OSError, ValueError) as error:
        sock.close()
        raise TlsError(what, reason(error), remedy_for(error, settings.prefix)) from error
    try:
        bound(tls_sock)
        async with asyncio.timeout(None if timeout is None else timeout - spent):
            while True:
                try:
                    tls_sock.do_handshake()
                except ssl.SSLWantReadError:
                    await until(tls_sock.fileno())
                except ssl.SSLWantWriteError:
                    await until(tls_sock.fileno(), writable=True)
                else:
                    check_peer(tls_sock, settings, what)
                    return tls_sock
    except TimeoutError as error:
        tls_sock.close()
        raise handshake_timed_out(peer, settings) from error
    except ssl.SSLCertVerificationError as error:
        await farewell(tls_sock)
        remedy = remedy_for(error, settings.prefix, of_client=server_name is None)
        raise UntrustedError(what, reason(error), remedy) from error
    except ssl.SSLEOFError as error:
        tls_sock.close()
        raise TlsError(what, "the peer closed the connection", "does it speak TLS?") from error
    except ssl.SSLError as error:
        await farewell(tls_sock)
        raise TlsError(what, reason(error), remedy_for(error, settings.prefix)) from error
    except OSError as error:
        tls_sock.close()
        raise TlsError(what, reason(error), remedy_for(error, settings.prefix)) from error
    except TlsError:  # of `check_peer`: without an alert a proper end would look like an empty answer
        reset(tls_sock)
        raise
    except BaseException:
        tls_sock.close()
        raise
