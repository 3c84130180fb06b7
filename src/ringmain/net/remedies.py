"""What to do about a TLS handshake that failed, by what OpenSSL says of it. Options are named as Python's keywords."""

import ssl

from ringmain.errors import reason

# X509_V_ERR_..., <openssl/x509_vfy.h>: what is wrong with the peer's certificate. Where {whose} is its own fault no
# option of ours helps; {trust} is the option that says whom we trust.
_OF_CERTIFICATES = {
    # the issuer is not known, or did not sign it
    (2, 20, 21, 24, 27, 65): "give its CA with {trust}, or have the peer send its intermediate certificates too",
    (18,): "trust this very certificate by giving it with {trust}",
    (19,): "give the CA at the end of its chain with {trust}",
    # time
    (9, 13): "it is not valid yet: set the clocks of both machines, or wait",
    (10, 14): "the peer needs a new one; or set the clock of this machine",
    (23,): "its CA has revoked it: the peer needs a new one",
    (3, 35, 44): "add the list of its CA to the file of {prefix}crl=",
    (8, 33): "the list in {prefix}crl= is not signed by its CA: get it from there again",
    (11,): "the list in {prefix}crl= is not valid yet: set the clock of this machine, or wait",
    (12,): "get a new list for {prefix}crl=, or set the clock of this machine",
    # what it is made for, and of
    (25, 26, 79): "it was not issued for this use: the peer needs one that was",
    (7, 66, 67, 68): "the peer needs one with a longer key or a newer signature",
    (62, 64): "connect by a name that is in it, or give one with {prefix}server_name=",
}

# What the peer's alert, or our OpenSSL, complains of: a part of the words, and what helps.
_OF_HANDSHAKES = {
    "did not return a certificate": "the client has to send one; or leave out {prefix}client_ca= to serve all, "
    "and {prefix}fingerprint=",
    "alert unknown ca": "the peer does not trust our certificate: it needs the CA, or give another {prefix}certfile=",
    "alert certificate expired": "renew the certificate of {prefix}certfile=; or the peer's clock is wrong",
    "alert certificate revoked": "our certificate was revoked: give a new one with {prefix}certfile=",
    "alert certificate required": "the peer wants a certificate of ours: give one with {prefix}certfile=",
    "alert bad certificate": "the peer does not accept our certificate: give another one with {prefix}certfile=",
    "alert unsupported certificate": "our certificate is not for this use: give another one with {prefix}certfile=",
    "alert protocol version": "the peer and we have no TLS version in common: see {prefix}min_tls_version=",
    "unsupported protocol": "the peer and we have no TLS version in common: see {prefix}min_tls_version=",
    "alert unrecognized name": "the peer does not serve that name: give one that it does with {prefix}server_name=",
    "no shared cipher": "the peer knows none of our cipher suites: see {prefix}ciphers= and {prefix}tls13_ciphers=",
    "alert handshake failure": "the peer wants a certificate, or other suites: {prefix}certfile=, {prefix}ciphers=",
    "alert no application protocol": "the peer knows none of {prefix}alpn=",
    "alert": "the peer rejects our certificate or settings; its log may tell why",
    "wrong version number": "does the peer speak TLS?",
    "http request": "does the peer speak TLS?",
    "server_hostname": "name the host in the endpoint, or give {prefix}server_name=",
}


def remedy_for(error: BaseException, prefix: str, *, of_client: bool = False) -> str:
    """Return what to do about an error of a handshake, or an alert behind it; `of_client`: we are the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        trust = f"{prefix}{'client_ca' if of_client else 'cafile'}="
        for codes, remedy in _OF_CERTIFICATES.items():
            if error.verify_code in codes:
                return remedy.format(trust=trust, prefix=prefix)
        return "the peer needs another certificate"
    words = reason(error)
    for part, remedy in _OF_HANDSHAKES.items():
        if part in words:
            return remedy.format(prefix=prefix)
    if isinstance(error, ssl.SSLError):
        return f"check {prefix}min_tls_version=, {prefix}ciphers= and the certificates of both sides"
    return "try again, or see the peer's log"
