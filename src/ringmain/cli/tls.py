"""Whether an endpoint is to be used with TLS, and the options that wait for it in vain."""

import dataclasses
import logging
from typing import Any

from ringmain.endpoint import Endpoint
from ringmain.settings import TlsSettings, check_plain, keywords_given

log = logging.getLogger("ringmain")

# The options that wait for TLS in vain where there is none: not those that are never unset, nor the one that brings it.
_TLS_OPTIONS = [it.name for it in dataclasses.fields(TlsSettings) if not it.default and it.name != "tls_auto"]


def uses_tls(endpoint: Endpoint, options: dict[str, Any]) -> bool:
    """Tell whether an endpoint is to be used with TLS; warn of options that wait for it in vain."""
    tls = bool(options["tls"] or options.get("tls_auto") or endpoint.tls)  # bench has no tls_auto
    if not tls:
        prefix = options.get("prefix", "")  # relay's, where a file is at the other end
        warn_of_unused(options, prefix, "a tcps:// endpoint" if prefix else "tls=True")
    return tls


def warn_of_unused(options: dict[str, Any], prefix: str, wanted: str) -> None:
    """Warn of options of TLS where nothing is encrypted; `wanted` is what would encrypt it.

    Raise UsageError for those that nobody may take for granted. The warning counts as an error, which --quiet shows.
    """
    check_plain(options, prefix, wanted)
    if unused := keywords_given(options, _TLS_OPTIONS, prefix):
        log.error("%s: ignored without %s, nothing is encrypted", unused, wanted)
