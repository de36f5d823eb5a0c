#!/usr/bin/env python3
"""Makes the API server of a test cluster reachable from the machine.

    forward.py FILE COMMAND…    listens on a free port of 127.0.0.1, writes its number into FILE, and becomes
                                `COMMAND… forward.py --serve FD PORT`
    forward.py --serve FD PORT  takes connections from the inherited socket and joins them to 127.0.0.1:PORT

COMMAND enters the cluster's network. A socket stays in the network where it was opened, so one process stands in
both: it takes connections from the machine and opens them in the cluster. Nothing else of the machine changes.
"""

import asyncio
import os
import socket
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def serve(listener, port):
    async def join(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        far_writer.close()
        writer.close()

    server = await asyncio.start_server(join, sock=listener)
    await server.serve_forever()


def main():
    if sys.argv[1] == "--serve":
        asyncio.run(serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])))
        return
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.set_inheritable(True)
    port = str(listener.getsockname()[1])
    with open(sys.argv[1] + ".new", "w", encoding="ascii") as file:
        file.write(port)
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    os.execvp(sys.argv[2], [*sys.argv[2:], sys.executable, __file__, "--serve", str(listener.fileno()), port])


main()
