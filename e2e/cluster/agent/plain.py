"""What a test puts at the far end of a way round the sidecar: it answers REACHED, over TCP on 8080 and over UDP on 8080
and 443, to whoever gets here. Says each on standard output."""

import selectors
import socket

choose = selectors.DefaultSelector()
listener = socket.create_server(("0.0.0.0", 8080))
choose.register(listener, selectors.EVENT_READ)
for port in (8080, 443):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("0.0.0.0", port))
    choose.register(one, selectors.EVENT_READ)
print("is up", flush=True)
while True:
    for key, _ in choose.select():
        if key.fileobj is listener:
            with listener.accept()[0] as peer:
                peer.settimeout(2)
                try:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nREACHED")
                except OSError:
                    pass
            print("reached over TCP", flush=True)
        else:
            data, peer = key.fileobj.recvfrom(4096)
            key.fileobj.sendto(data, peer)
            print("reached over UDP", flush=True)
