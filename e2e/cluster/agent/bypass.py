"""Tries, from inside an agent's container, to go round the sidecar of its pod. Run by the pod's own user or as root.

    bypass.py ADDRESS PORT              where a server of another pod listens

For each way one line of JSON: {"way": …, "through": true|false, "seen": …}. A way is through if it reached the other
pod's server (its greeting came back), or the thing that it was after. What answers instead, as the sidecar does, is seen.
"""

import ctypes
import glob
import json
import os
import socket
import struct
import subprocess
import sys

ADDRESS, PORT = sys.argv[1], int(sys.argv[2])
PROXY = 62620
# What the server on the far side says to anybody who reaches it.
REACHED = b"REACHED"
ASK = b"GET /plain HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"


def talk(family, address, port, host=None, kind=socket.SOCK_STREAM, protocol=0, before=None):
    """(whether the server itself answered, what came back)"""
    with socket.socket(family, kind, protocol) as one:
        one.settimeout(3)
        if before:
            before(one)
        one.connect((address, port))
        one.sendall(ASK % (host or address).encode())
        try:
            answer = one.recv(4096)
        except TimeoutError:
            return False, "no answer"
    return REACHED in answer, answer[:80].decode(errors="replace")


def tcp(**options):
    return lambda: talk(socket.AF_INET, ADDRESS, PORT, **options)


def mapped():
    return talk(socket.AF_INET6, f"::ffff:{ADDRESS}", PORT)


def own_ports(port):
    return lambda: talk(socket.AF_INET, "127.0.0.1", port, host=ADDRESS)


def bound_source():
    return tcp(before=lambda one: one.bind(("0.0.0.0", 15001)))()


def mark(one):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)


def transparent(one):
    one.setsockopt(socket.SOL_IP, 19, 1)


def become(call, *arguments):
    """Becomes the sidecar's user in a child, and then calls."""

    def way():
        child = os.fork()
        if child == 0:
            try:
                call(*arguments)
                reached, _ = tcp()()
                os._exit(0 if reached else 3)
            except OSError as error:
                os._exit(100 + min(error.errno or 0, 100))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code == 0, f"ended with {code}"

    return way


def user_namespace():
    """A user namespace of its own, with the sidecar's user in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
    with open("/proc/self/uid_map", "w") as file:
        file.write(f"{PROXY} {PROXY} 1")
    os.setuid(PROXY)


def setuid_program():
    """A program that belongs to the sidecar's user, with the bit that makes it run as that user."""
    path = "/tmp/become"
    with open(path, "wb") as file:
        file.write(open("/proc/self/exe", "rb").read())
    os.chown(path, PROXY, PROXY)
    os.chmod(path, 0o4755)
    code = "import os; print(os.geteuid())"
    told = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONHOME": "/usr/local"})
    return told.stdout.strip() == str(PROXY), told.stdout + told.stderr


def raw(kind, protocol, family=socket.AF_INET):
    def way():
        with socket.socket(family, kind, protocol):
            return True, "it was opened"

    return way


def netlink():
    """Takes the rules away: a delete of the table `inet aegis`, in one batch."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as one:
        one.settimeout(3)

        def message(kind, flags, family, resource, body=b""):
            payload = struct.pack("=BBH", family, 0, socket.htons(resource)) + body
            return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload

        name = struct.pack("=HH", 10, 1) + b"aegis\0\0\0"
        one.send(message(16, 1, 0, 10) + message(10 << 8 | 2, 5, 1, 0, name) + message(17, 1, 0, 10))
        answer = one.recv(4096)
        error = struct.unpack_from("=i", answer, 16)[0]
        return error == 0, os.strerror(-error)


def nft():
    told = subprocess.run(["nft", "flush", "ruleset"], capture_output=True, text=True, check=False)
    return told.returncode == 0, told.stderr


def datagram(port, family=socket.AF_INET, protocol=0):
    def way():
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as one:
            one.settimeout(2)
            one.sendto(REACHED, (ADDRESS, port))
            try:
                return REACHED in one.recv(4096), "answered"
            except TimeoutError:
                return False, "no answer"

    return way


def ping():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as one:
        one.settimeout(2)
        body = REACHED
        packet = struct.pack("!BBHHH", 8, 0, 0, 0, 1) + body
        total = sum(struct.unpack(f"!{len(packet + b'0') // 2}H", packet + b"\0" * (len(packet) % 2)))
        total = (total >> 16) + (total & 0xFFFF)
        packet = packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
        one.sendto(packet, (ADDRESS, 0))
        return REACHED in one.recv(4096), "answered"


def read(*patterns):
    def way():
        paths = [path for pattern in patterns for path in glob.glob(pattern)]
        for path in paths:
            with open(path, "rb") as file:
                if file.read(1):
                    return True, f"{path} was read"
        return False, "there is none"

    return way


def write_socket():
    path = "/run/aegis/mine"
    with open(path, "w") as file:
        file.write("x")
    return True, f"{path} was written"


def processes():
    """Whether the sidecar's process is in sight."""
    for path in glob.glob("/proc/[0-9]*/status"):
        with open(path) as file:
            if f"Uid:\t{PROXY}" in file.read():
                return True, path
    return False, "no process of its is in sight"


def take_port(port, family=socket.AF_INET, address="0.0.0.0"):
    def way():
        with socket.socket(family) as one:
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((address, port))
            one.listen()
            return True, "it was taken"

    return way


def abstract():
    """Sockets without a file are shared within a pod."""
    with open("/proc/net/unix") as file:
        names = [line.split()[-1] for line in file if line.split()[-1].startswith("@")]
    return bool(names), " ".join(names) or "there is none"


WAYS = [
    ("TCP to the other pod's address and port", tcp()),
    ("TCP over an IPv6 socket", mapped),
    ("another name in the Host header", tcp(host="127.0.0.1:8080")),
    ("the sidecar's health in the Host header", tcp(host="127.0.0.1:15021")),
    ("an absolute address in the request", tcp(host=f"aegis@{ADDRESS}")),
    ("a source port of the sidecar's", bound_source),
    ("a mark on packets", tcp(before=mark)),
    ("a transparent socket", tcp(before=transparent)),
    ("the outbound port itself", own_ports(15001)),
    ("the inbound port itself", own_ports(15006)),
    ("becoming the sidecar's user", become(os.setuid, PROXY)),
    ("becoming the sidecar's group", become(os.setgid, PROXY)),
    ("the sidecar's user in a user namespace", become(user_namespace)),
    ("a setuid program of the sidecar's user", setuid_program),
    ("a raw IP socket", raw(socket.SOCK_RAW, socket.IPPROTO_TCP)),
    ("a packet socket", raw(socket.SOCK_RAW, 768, socket.AF_PACKET)),
    ("flushing the rules with nft", nft),
    ("deleting the rules over netlink", netlink),
    ("QUIC's port", datagram(443)),
    ("UDP to another port", datagram(PORT)),
    ("UDP-Lite", datagram(PORT, protocol=136)),
    ("SCTP", tcp(protocol=132)),
    ("a tunnel in ping", ping),
    ("the sidecar's token", read("/var/run/secrets/aegis/token", "/proc/[0-9]*/root/var/run/secrets/aegis/token")),
    ("the sidecar's state", read("/var/lib/aegis/*", "/proc/[0-9]*/root/var/lib/aegis/*")),
    ("writing beside the sidecar's sockets", write_socket),
    ("the sidecar's process", processes),
    ("the sidecar's outbound port for oneself", take_port(15001)),
    ("the sidecar's inbound port for oneself", take_port(15006)),
    ("the sidecar's health port for oneself", take_port(15021)),
    ("the sidecar's health port for oneself, over IPv6", take_port(15021, socket.AF_INET6, "::")),
    ("the sidecar's inbound port for oneself, over IPv6", take_port(15006, socket.AF_INET6, "::")),
    ("an abstract socket of the sidecar's", abstract),
]

for what, way in WAYS:
    try:
        through, seen = way()
    except (OSError, ValueError) as error:
        through, seen = False, f"{type(error).__name__}: {error}"
    print(json.dumps({"way": what, "through": bool(through), "seen": seen.strip()[:120]}), flush=True)
