"""Stands in for the sidecar where only the redirect is shown: it takes connections on the sidecar's ports, answers each
with CAUGHT, and forwards nothing. It governs nothing and is no sidecar."""

import os
import selectors
import socket

PORTS = [int(os.environ[name]) for name in ("AEGIS_OUTBOUND_PORT", "AEGIS_INBOUND_PORT", "AEGIS_HEALTH_PORT")]
choose = selectors.DefaultSelector()
for port in PORTS:
    choose.register(socket.create_server(("0.0.0.0", port)), selectors.EVENT_READ)
try:
    with open("/var/run/secrets/aegis/token", "rb") as file:
        print("its token can be read" if file.read(1) else "its token is empty", flush=True)
except OSError as error:
    print(error, flush=True)
while True:
    for key, _ in choose.select():
        with key.fileobj.accept()[0] as peer:
            peer.settimeout(2)
            try:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nCAUGHT")
            except OSError:
                pass
