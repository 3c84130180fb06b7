"""A contender that loses one byte and adds another: it must not pass. Started by test_benchmarks."""

import os
import socket
import sys

with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    connection = listener.accept()[0]
with connection:
    data = bytearray()
    while chunk := connection.recv(1 << 20):
        data += chunk
del data[1000]
data.append(0)
view = memoryview(data)
while len(view):
    view = view[os.write(1, view) :]
