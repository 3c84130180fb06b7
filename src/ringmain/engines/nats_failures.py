"""What an error of nats-py means: one line with the remedy, and an exit code."""

import asyncio
import re
import socket
import ssl
from typing import Any

import nats.errors
import nats.js.errors

from ringmain.errors import (
    ConnectError,
    DeniedError,
    NotFoundError,
    ReceiveError,
    RecordTooLongError,
    ResolveError,
    RingmainError,
    TimedOutError,
    TlsError,
    UntrustedError,
    reason,
)
from ringmain.net.remedies import remedy_for
from ringmain.settings import Settings

# The server's err_code.
_NO_STREAM, _NO_CONSUMER, _NO_MESSAGE, _NAME_IN_USE = 10059, 10014, 10037, 10058


def failure_of(error: BaseException, what: str, settings: Settings) -> RingmainError:
    """Return what an error of nats-py means: `what` failed, why, and what to do about it."""
    if isinstance(error, RingmainError):
        return error
    words = _words(error)
    if isinstance(error, nats.js.errors.APIError):
        return _refusal_of(error, what, words)
    if "permissions violation" in words.lower():
        return DeniedError(what, words, "ask the server's operator to permit it")
    if "authentication timeout" in words.lower():
        return TimedOutError(what, "it took us too long to log in", "is this machine, or the server, busy?")
    if isinstance(error, nats.errors.AuthorizationError) or re.match("(?i)(user )?auth(oriz|entic)ation ", words):
        remedy = "write user:password@ or token@ before the host, or give credentials="
        return DeniedError(what, words, remedy)
    if isinstance(error, nats.errors.MaxPayloadError) or "maximum payload" in words.lower():
        return RecordTooLongError(what, "the server accepts no message of this size", "raise its max_payload")
    if isinstance(error, nats.errors.SlowConsumerError) or "slow consumer" in words.lower():
        return ReceiveError(what, "messages arrived faster than they were read, and were lost", "start again from them")
    if isinstance(error, nats.errors.NoRespondersError | nats.js.errors.NoStreamResponseError):
        return _no_jetstream(what)
    if isinstance(error, nats.errors.SecureConnWantedError):
        return TlsError(what, "the server offers no TLS", "set it up there, or leave tls out")
    return _of_connection(error, what, words, settings)


def _refusal_of(error: Any, what: str, words: str) -> RingmainError:
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and not error.err_code:
        return _no_jetstream(what)
    if error.err_code == _NO_STREAM:
        return NotFoundError(what, "there is none", "create it (nats stream add), or choose another: nats stream ls")
    if error.err_code == _NO_CONSUMER:
        return NotFoundError(what, "its consumer is gone", "somebody has deleted it: start again")
    if error.err_code == _NO_MESSAGE:
        return NotFoundError(what, words)
    if error.err_code == _NAME_IN_USE:
        remedy = "give create_stream= another name, or have that one take the subject too: nats stream edit"
        return RingmainError(what, "there is one of that name, with other subjects", remedy)
    return RingmainError(what, words, "see the server's log")


def may_pass(error: RingmainError) -> bool:
    """Tell whether what a server said, or did not, may be otherwise a moment later, as between two leaders."""
    passing = (nats.js.errors.ServiceUnavailableError, nats.errors.NoRespondersError, nats.errors.TimeoutError)
    return isinstance(error, TimedOutError) or isinstance(error.__cause__, passing)


def _no_jetstream(what: str) -> RingmainError:
    return NotFoundError(what, "the server has no JetStream", "start it with --jetstream, or enable it for the account")


def _of_connection(error: BaseException, what: str, words: str, settings: Settings) -> RingmainError:
    if isinstance(error, TimeoutError | asyncio.TimeoutError | nats.errors.TimeoutError):
        if what.startswith("connect to"):
            why = f"no answer within {settings.connect_timeout:g} s"
            return TimedOutError(what, why, "is it a NATS server?", limit="connect_timeout")
        return TimedOutError(what, "no answer", "is a majority of the servers up? nats server check jetstream")
    if isinstance(error, ssl.SSLCertVerificationError):
        return UntrustedError(what, reason(error), remedy_for(error, settings.prefix))
    if isinstance(error, ssl.SSLError):
        return TlsError(what, reason(error), remedy_for(error, settings.prefix))
    if isinstance(error, socket.gaierror):
        return ResolveError(what, reason(error).lower(), "check the host's name")
    if isinstance(error, OSError):
        return ConnectError(what, reason(error), "is a NATS server listening there?")
    if isinstance(error, nats.errors.Error):
        return ConnectError(what, words, "is it a NATS server? is it up?")
    return RingmainError(what, words, "please report this")


def _words(error: BaseException) -> str:
    if isinstance(error, nats.js.errors.APIError) and error.description:
        return str(error.description)
    words = reason(error).removeprefix("nats: ").strip("'")
    return words.splitlines()[0] if words else type(error).__name__
