"""A service manager, as a program under test sees it."""

import os
import socket

import peers


class Manager:
    """A service manager's socket, and what has come there."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(peers.TIMEOUT)
        self.sock.bind(address.replace("@", "\0"))
        self.environment = {**os.environ, "NOTIFY_SOCKET": address}
        self.heard: list[str] = []

    def hears(self, beginning: str) -> str:
        """Wait for a message that begins like that."""
        while True:
            self.heard.append(self.sock.recv(4096).decode())
            if self.heard[-1].startswith(beginning):
                return self.heard[-1]
