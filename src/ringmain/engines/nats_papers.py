"""What a NATS server wants to see of us, and we of it: certificates, and a credentials file; read again when told."""

import importlib
import logging
import ssl
from collections.abc import Callable

from nats.aio.client import RawCredentials

from ringmain.errors import CertificateError, RingmainError, UsageError, reason
from ringmain.net.renewable import Renewable
from ringmain.settings import Settings

log = logging.getLogger("ringmain")

_LARGEST_CREDENTIALS = 64 << 10


class Papers:
    """The files by which connections to a server are made: a run's, however many connections that has.

    `tls` and `credentials` are what nats-py is given, which looks at them whenever it connects. They are there once
    `read` has returned. `path` is that of the credentials file, if there is one, with a JWT and its seed. When other
    credentials were read, `on_others` is called: a server ends a connection when those expire that it was made by.
    """

    tls: Renewable

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.path = path
        self.credentials = RawCredentials("") if path is not None else None
        self.on_others: Callable[[], object] = lambda: None
        self._was_read = False
        self.settings = settings

    def read(self) -> None:
        """Read all files, unless that was done; raise CertificateError or CaFileError."""
        if self._was_read:
            return
        from ringmain.net.tls import client_context

        settings, path = self.settings, self.path

        def make(again: bool) -> ssl.SSLContext:
            text = _read_credentials(path) if path is not None else ""
            context = client_context(settings, again=again)
            if self.credentials is not None:
                self.credentials.data = text
            return context

        names = (settings.certfile, settings.keyfile, settings.key_password_file, settings.cafile, settings.crl, path)
        self.tls = Renewable.made_by(make, [name for name in names if name is not None])
        self._was_read = True

    def reload_certificates(self) -> None:
        """Read them again, for the next connection; raise what is wrong with one, and keep what was read before."""
        before = str(self.credentials)
        if self._was_read:
            self.tls.renew()
        if str(self.credentials) != before:
            self.on_others()

    def read_changed(self) -> None:
        """Read them again where one was changed since; warn of what is wrong with it, and keep what was read before."""
        if self.certificates_changed:
            try:
                self.reload_certificates()
            except RingmainError as error:
                log.warning("the certificates stay as they were: %s", error)

    @property
    def not_after(self) -> int | None:
        """When our own certificate expires, in seconds of Unix time; None where there is none, or that is not told."""
        return self.tls.not_after if self._was_read else None

    @property
    def certificates_changed(self) -> bool:
        """Whether one of these files is another than when it was last read, or was changed since."""
        return self._was_read and self.tls.has_changed


def _read_credentials(path: str) -> str:
    """Return what a credentials file holds; nats-py would search one without a JWT forever."""
    what, remedy = f"credentials={path}", "give the file that `nsc generate creds` has written"
    try:
        importlib.import_module("nkeys")  # which nats-py does when a server asks for a signature
    except ImportError as error:
        raise UsageError(what, f"it needs nkeys ({reason(error)})", "pip install 'ringmain[nats]'") from error
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read(_LARGEST_CREDENTIALS).decode()
    except (OSError, ValueError) as error:
        raise CertificateError(what, reason(error), remedy) from error
    lines = text.splitlines()
    for words in ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED"):
        if not any(words in line for line in lines[:-1]):
            raise CertificateError(what, f"it has no {words.removeprefix('BEGIN ')}", remedy)
    return text
