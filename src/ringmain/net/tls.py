"""Turn settings into an `ssl.SSLContext`, and say which file is at fault when that fails. Touches no socket."""

import logging
import ssl

from ringmain.errors import CaFileError, UsageError, reason
from ringmain.net.own_certificate import load_own, load_self_signed
from ringmain.settings import Settings, keywords_given

log = logging.getLogger("ringmain")


def server_context(settings: Settings) -> ssl.SSLContext:
    """Return the context of a listener, which needs a certificate; `client_ca` makes it require one of the client."""
    if settings.certfile is None and not settings.self_signed:
        prefix = settings.prefix
        remedy = f"give {prefix}certfile=, a PEM file, or {prefix}self_signed=True to try it out"
        raise UsageError("TLS listener", "it needs a certificate", remedy)
    why = f"by a listener, which verifies clients with {settings.prefix}client_ca="
    _warn_of_unused(settings, ("cafile", "server_name", "insecure"), why)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Tickets that a sender never reads turn its close() into a reset, and its last bytes are lost.
    context.num_tickets = 0
    if settings.self_signed:
        load_self_signed(context, settings)
    else:
        load_own(context, settings)
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, settings.client_ca, "client CA file")
    return _finished(context, settings)


def client_context(settings: Settings) -> ssl.SSLContext:
    """Return the context of a connection that we open: verified by `cafile` or the system's authorities."""
    _warn_of_unused(settings, ("client_ca", "self_signed"), "when connecting")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning(
            "%sinsecure=True: the peer's certificate is not verified, anyone in between can read and change the data",
            settings.prefix,
        )
    elif settings.cafile is not None:
        _load_authorities(context, settings.cafile, "CA file")
    else:
        context.load_default_certs()
    if settings.certfile is not None:
        load_own(context, settings)
    return _finished(context, settings)


def _warn_of_unused(settings: Settings, names: tuple[str, ...], why: str) -> None:
    if unused := keywords_given(vars(settings), names, settings.prefix):
        log.warning("%s: ignored %s", unused, why)


def _finished(context: ssl.SSLContext, settings: Settings) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.min_tls_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # What is trusted ends the chain, whether it signed itself or not: an intermediate's CA need not be at hand.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.ciphers is not None:
        what = f"{settings.prefix}ciphers={settings.ciphers!r}"
        if later := [name for name in settings.ciphers.split(":") if name.startswith("TLS_")]:
            why = f"{', '.join(later)} belong to TLS 1.3"
            raise UsageError(what, why, f"give those with {settings.prefix}tls13_ciphers=")
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError as error:
            raise UsageError(what, "OpenSSL knows none of them", "see: openssl ciphers -v") from error
    if settings.tls13_ciphers is not None:
        _choose_tls13(context, settings)
    return context


def _choose_tls13(context: ssl.SSLContext, settings: Settings) -> None:
    """Allow these suites of TLS 1.3 only. Python has no call for that, its libssl has."""
    from ringmain._libssl import set_ciphersuites

    what = f"{settings.prefix}tls13_ciphers={settings.tls13_ciphers!r}"
    wanted = str(settings.tls13_ciphers).split(":")
    if not set_ciphersuites(context, ":".join(wanted)):
        raise UsageError(what, "this Python's OpenSSL gives no access to them", "leave it out")
    known = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.3"}
    if unknown := [name for name in wanted if name not in known]:
        remedy = "see: openssl ciphers -s -tls1_3"
        raise UsageError(what, f"{', '.join(unknown)}: no suites of TLS 1.3 that OpenSSL knows", remedy)


def _load_authorities(context: ssl.SSLContext, path: str, name: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        why = "no certificate in it" if isinstance(error, ssl.SSLError) else reason(error)
        raise CaFileError(f"{name} {path}", why, "give a PEM file of CA certificates") from error
