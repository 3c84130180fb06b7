"""What the verbs that may listen tell of their listener and of their certificates."""

from collections.abc import Awaitable, Callable

from ringmain.endpoint import Endpoint
from ringmain.net.door import Door
from ringmain.net.gate import listen
from ringmain.net.reception import OnFailed
from ringmain.net.renewable import Renewable
from ringmain.outcome import Unserved
from ringmain.settings import Settings


class Listening:
    """What a verb that may listen tells about its listener, and how its connections are protected."""

    _gate: Door | None = None
    _context: Renewable | None = None
    open_gate: Callable[[Endpoint, Settings], Awaitable[Door]] = staticmethod(listen)  # or where others hand clients
    on_failed: OnFailed | None = None  # hears of clients that are not served; to be set before it listens

    async def _listen(self, endpoint: Endpoint, settings: Settings) -> Door:
        gate = await self.open_gate(endpoint, settings)
        gate.on_failed = self.on_failed
        return gate

    @property
    def addresses(self) -> list[str]:
        """The addresses listened at, as "127.0.0.1:43211"; empty for a verb that connects."""
        return self._gate.addresses if self._gate is not None else []

    @property
    def port(self) -> int:
        """The port listened at, which port 0 leaves to the system."""
        if self._gate is None:
            raise ValueError("no port: nothing is listened at")
        return self._gate.port

    @property
    def peers(self) -> list[str]:
        """The clients that are served, as "192.0.2.1:51234"; none for a verb that connects."""
        return self._gate.peers if self._gate is not None else []

    @property
    def unserved(self) -> Unserved:
        """How many clients came and were not served."""
        return self._gate.unserved if self._gate is not None else Unserved()

    @property
    def refused(self) -> int:
        """How many clients were turned away."""
        return self.unserved.refused

    @property
    def probes(self) -> int:
        """How many clients ended before a byte of a TLS handshake, as health checks do."""
        return self.unserved.probes

    def reload_certificates(self) -> None:
        """Read certificate, key and CA files again: TLS handshakes that begin from now on use what they hold.

        Raises CertificateError or CaFileError for one that is no good; then what was read before stays in use.
        """
        if self._context is not None:
            self._context.renew()

    @property
    def not_after(self) -> int | None:
        """When our own certificate expires, in seconds of Unix time; None where there is none, or that is not told."""
        return self._context.not_after if self._context is not None else None

    @property
    def certificates_changed(self) -> bool:
        """Whether one of these files is another than when it was last read, or was changed since."""
        return self._context is not None and self._context.has_changed
