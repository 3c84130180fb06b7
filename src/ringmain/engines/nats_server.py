"""A `nats://` endpoint to a connected client of nats-py."""

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import nats.errors

from ringmain.endpoint import LogEndpoint
from ringmain.engines.nats_client import NatsClient
from ringmain.engines.nats_failures import failure_of
from ringmain.engines.nats_papers import Papers
from ringmain.errors import (
    CertificateError,
    ConnectError,
    DeniedError,
    ReceiveError,
    ResolveError,
    RingmainError,
    TimedOutError,
    UsageError,
    reason,
)
from ringmain.net.backoff import Backoff, Tally
from ringmain.settings import Settings, TlsSettings, keywords_given
from ringmain.waiting import let_go, unless

log = logging.getLogger("ringmain")

Result = TypeVar("Result")

_LONGEST_PAUSE = 5.0  # between two tries of a first connect
# How long the server may take for an answer: with a cluster that has just lost a leader, a few seconds.
_ANSWER_TIMEOUT = 10.0
_RECONNECT_WAIT = 0.5
# nats-py sends at least one PING so often; a day is "off".
_DAY = 86400


class _Failed(Exception):  # noqa: N818 - it carries one past nats-py, which catches and retries all else
    """What a first connect came to."""


class NatsServer:
    """One connection to a cluster, which nats-py opens again for as long as it takes once it was there.

    `client` is nats-py's, there once `open` has returned. What can never go on again, as a permission that is missing,
    ends every `ask` from then on: `on_over` is called then. `on_lost` and `on_back` are called when the connection
    breaks, and when it is back. `tally` counts that, and tries in vain. Unless it `reconnects` it never is: what
    nats-py still had to send is not sent by another connection.
    """

    def __init__(
        self,
        endpoint: LogEndpoint,
        settings: Settings,
        papers: Papers,
        *,
        reconnects: bool = True,
        tally: Tally | None = None,
    ) -> None:
        """Nothing is opened yet, and no file read."""
        self.endpoint = endpoint
        self.on_lost: Callable[[], object] = lambda: None
        self.on_back: Callable[[], object] = lambda: None
        self.on_over: Callable[[], object] = lambda: None
        self.tls: tuple[str, str] | None = None  # version and cipher suite, once it is open
        self.tally = tally or Tally()
        self._settings = settings
        self.papers = papers
        self._reconnects = reconnects
        self._open = self._closed = False
        self._lost_at = 0.0
        self._told: set[type] = set()  # what was warned of since it was lost
        self._over: asyncio.Future[RingmainError] | None = None

    async def open(self) -> None:
        """Connect to the first of the servers that answers, trying again `settings.retry` times; raise RingmainError.

        Cancelled, it leaves nothing open.
        """
        self._over = asyncio.get_running_loop().create_future()
        options = self._options()
        trying = Backoff(_LONGEST_PAUSE, self.tally).keep_trying(
            lambda: self._connect(options), is_outage, self._settings.retry
        )
        # In a task of its own: nats-py may keep a cancellation to itself, and go on.
        client = await unless(asyncio.Event().wait(), trying, self._discard)
        assert client is not None
        self.client = client
        self._open = True
        self.tls = self.client.tls

    def connect_again(self) -> None:
        """Make another connection now, unless that is being tried anyway; it must be one that `reconnects`."""
        if self._open and self._over is not None:
            self._connecting = self._over.get_loop().create_task(self.client.force_reconnect())

    async def close(self) -> None:
        """Close, however often cancelled; one that `reconnects` sends what it still has if the server takes it now."""
        if self._open:
            self._open, self._closed = False, True
            self.client.leaves_at_once = not self._reconnects
            await _close(self.client)

    def abandon(self) -> None:
        """Close without a word to the server, on a loop that runs or does not any more."""
        loop = self._over.get_loop() if self._over is not None else None
        if not self._open or loop is None or loop.is_closed():
            return
        if loop.is_running():
            self._leaving = loop.create_task(self.close())
        else:
            self._open = False
            self.client.forget()

    def _discard(self, client: Any) -> None:
        self._leaving = asyncio.get_running_loop().create_task(_close(client))

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection at this moment."""
        return bool(self._lost_at)

    @property
    def failure(self) -> RingmainError | None:
        """Why this connection can never go on, or None while it can."""
        return self._over.result() if self._over is not None and self._over.done() else None

    async def ask(self, request: Coroutine[Any, Any, Result], what: str) -> Result:
        """Await a call of nats-py; raise what its error means, or why there is no answer to come.

        `what` begins the error's line: "stream EVENTS at nats://...".
        """
        assert self._over is not None
        over = self._over

        async def until_over() -> None:
            await asyncio.wait([over])

        async def answered() -> list[Result]:
            return [await request]

        try:
            answer = await unless(until_over(), answered())
        except Exception as error:
            raise failure_of(error, what, self._settings) from error
        if answer is None:
            raise over.result()
        return answer[0]

    @property
    def _asks_for_tls(self) -> bool:
        """Whether anything is set that would count for nothing in the clear."""
        return any(getattr(self._settings, it.name) != it.default for it in dataclasses.fields(TlsSettings))

    def _options(self) -> dict[str, Any]:
        settings, endpoint = self._settings, self.endpoint
        if unchecked := keywords_given(vars(settings), ("fingerprint", "alpn"), settings.prefix):
            raise UsageError(f"{unchecked} with {endpoint}", "nats-py does not check that", "give cafile= instead")
        token = endpoint.user if endpoint.password is None else None
        self.papers.read()
        return {
            "name": "ringmain",
            "user": endpoint.user if endpoint.password is not None else None,
            "password": endpoint.password,
            "token": token,
            "user_credentials": self.papers.credentials,
            "tls": self.papers.tls,
            "tls_hostname": settings.server_name,
            "connect_timeout": settings.connect_timeout,
            "ping_interval": settings.keepalive or _DAY,
            "dont_randomize": True,  # the order is ours
            "reconnect_time_wait": _RECONNECT_WAIT,
            # Without: it waits there until it is closed. (With allow_reconnect=False it closes itself, half way.)
            "reconnect_to_server_handler": None if self._reconnects else lambda servers, _: (servers[0], _DAY),
            "max_reconnect_attempts": -1,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_lost,
            "reconnected_cb": self._on_back,
            "closed_cb": self._on_closed,
        }

    async def _connect(self, options: dict[str, Any]) -> Any:
        """Return a client of one of the servers; raise what the last one said, or the first that refused us."""
        servers = random.sample(self.endpoint.servers, len(self.endpoint.servers))
        for number in range(len(servers)):
            client = NatsClient()
            client.must_encrypt = self.endpoint.tls or self._settings.tls or self._asks_for_tls
            urls = [f"nats://{server}" for server in servers[number:] + servers[:number]]
            connected = False
            try:
                await client.connect(urls, **options)
                connected = True
                return client
            except Exception as error:
                cause = error.args[0] if isinstance(error, _Failed) else error
                failure = failure_of(cause, f"connect to nats://{servers[number]}", self._settings)
                failure.__cause__ = cause
                if self.papers.path is not None and failure.__class__ is RingmainError:  # of a seed that is none
                    failure = CertificateError(f"credentials={self.papers.path}", reason(cause), "give another file")
                if number == len(servers) - 1 or not is_outage(failure):
                    raise failure from cause
                log.info("%s; trying the next server", failure)
            finally:
                if not connected:
                    await _close(client)
        raise AssertionError("an endpoint has a server")

    async def _on_error(self, error: Exception) -> None:
        """Hear of what nats-py tells on the side: how a first connect failed, and what the server refuses later."""
        if self._closed:
            return
        if not self._open:
            raise _Failed(error)
        failure = failure_of(error, str(self.endpoint), self._settings)
        if not self.client.is_connected:  # of one attempt of many, whose socket nats-py forgets
            self.client.abort()
            self.tally.failures += bool(self._lost_at)  # before that it is told how the lost connection was closed
            if not is_outage(failure) and type(failure) not in self._told:
                self._told.add(type(failure))
                log.warning("%s; trying again", failure)
        elif isinstance(failure, DeniedError | ReceiveError):
            self._end(failure)
        else:
            log.info("%s", failure)

    async def _on_lost(self) -> None:
        if self._open and not self._lost_at:
            self._lost_at = time.monotonic()
            why = f" ({self.client.refusal})" if self.client.refusal else ""
            log.warning("%s: connection lost%s; trying to connect again", self.endpoint, why)
            self.on_lost()

    async def _on_back(self) -> None:
        if self._lost_at:
            log.warning("%s: connected again after %.1f s", self.endpoint, time.monotonic() - self._lost_at)
            self._lost_at, self.client.refusal = 0.0, ""
            self._told.clear()
            self.tally.reconnects += 1
        self.on_back()

    async def _on_closed(self) -> None:
        if self._open:  # by the server, and not by us
            error = self.client.last_error or nats.errors.ConnectionClosedError()
            self._end(failure_of(error, str(self.endpoint), self._settings))

    def _end(self, failure: RingmainError) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(failure)
            self.on_over()


def is_outage(error: RingmainError) -> bool:
    """Tell whether a server is away, rather than set up so that it cannot let us in."""
    return isinstance(error, ResolveError | ConnectError | TimedOutError)


async def _close(client: Any) -> None:
    """Close a client whose server may not answer any more."""

    async def closing() -> None:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                await client.close()
        except (OSError, nats.errors.Error, _Failed, TimeoutError, RuntimeError) as error:  # uvloop's, of a closed one
            log.info("close a connection to nats: %s", reason(error))

    await let_go([asyncio.ensure_future(closing())])
