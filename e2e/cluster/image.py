#!/usr/bin/env python3
"""Writes a container image of programs that are already built, as a docker archive.

    image.py OUT.tar --name NAME:TAG --entrypoint PROGRAM [--user UID] [--add SOURCE[:TARGET]]…
             [--skip NAME]… [--env NAME=VALUE]… [-- ARGUMENT…]

The image is one layer: PROGRAM under /usr/local/bin, everything that is added, and each shared library that `ldd`
names for any of it, at the library's own path. Nothing of a distribution is in it: no shell, no certificates.
A file or folder without a TARGET keeps its own path; what is called NAME within a folder stays out. Times and owners are fixed, so equal input gives equal
bytes. A program for which a library is missing is refused.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What C libraries look for: who a user is, and where names come from.
TEXTS = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class Layer:
    """A tar of files, each path once, every parent before its children."""

    def __init__(self, file):
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self.paths = set()

    def _entry(self, path, kind, mode):
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = kind, mode
        return entry

    def _new(self, path):
        if path in self.paths:
            return False
        parent = os.path.dirname(path)
        if parent and parent not in self.paths:
            self.folder(parent)
        self.paths.add(path)
        return True

    def folder(self, path, mode=0o755):
        if self._new(path):
            self.tar.addfile(self._entry(path, tarfile.DIRTYPE, mode))

    def text(self, path, text):
        if self._new(path):
            entry = self._entry(path, tarfile.REGTYPE, 0o644)
            entry.size = len(text.encode())
            self.tar.addfile(entry, io.BytesIO(text.encode()))

    def link(self, path, target):
        if self._new(path):
            entry = self._entry(path, tarfile.SYMTYPE, 0o777)
            entry.linkname = target
            self.tar.addfile(entry)

    def file(self, path, source):
        if self._new(path):
            with open(source, "rb") as content:
                # Readable for every user, whatever the builder's umask was.
                executable = os.fstat(content.fileno()).st_mode & stat.S_IXUSR
                entry = self._entry(path, tarfile.REGTYPE, 0o755 if executable else 0o644)
                entry.size = os.fstat(content.fileno()).st_size
                self.tar.addfile(entry, content)


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(path):
    """The files that the dynamic loader would map for a program or library, by their own paths."""
    told = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    if "not a dynamic executable" in told.stderr + told.stdout or "statically linked" in told.stdout:
        return []
    if told.returncode or "not found" in told.stdout:
        sys.exit(f"image.py: {path} lacks a library; install it here first: {told.stdout}{told.stderr}")
    found = []
    for line in told.stdout.splitlines():
        # `name => /path (address)`, `/path (address)`, or a name without a file, which is the kernel's.
        path = line.split("=>")[-1].split("(")[0].strip()
        if path.startswith("/"):
            found.append(path)
    return found


def inside(path):
    """The path that a library has in the image. Where /lib is a link to /usr/lib, the image has real folders."""
    return os.path.normpath(path).lstrip("/")


def add_file(layer, path, source, wanted):
    layer.file(path, source)
    if is_elf(source):
        wanted.update(libraries(source))


def add(layer, source, target, wanted, skip):
    if source.is_symlink() and not source.is_file():
        layer.link(target, os.readlink(source))
    elif source.is_dir():
        layer.folder(target)
        for child in sorted(source.iterdir()):
            if child.name not in skip:
                add(layer, child, f"{target}/{child.name}", wanted, skip)
    elif source.is_symlink() and "/" not in os.readlink(source):
        layer.link(target, os.readlink(source))
    elif source.is_file():
        add_file(layer, target, source, wanted)
    else:
        sys.exit(f"image.py: {source} is neither a file nor a folder")


def write_layer(out, arguments):
    layer = Layer(out)
    wanted, skip = set(), {"__pycache__", *arguments.skip}
    for path, text in TEXTS.items():
        layer.text(path, text)
    layer.folder("tmp", 0o1777)
    entrypoint = Path(arguments.entrypoint).resolve()
    add_file(layer, f"usr/local/bin/{Path(arguments.entrypoint).name}", entrypoint, wanted)
    for spec in arguments.add:
        source, _, target = spec.partition(":")
        source = Path(source)
        # A link that is named itself stands for what it points to.
        add(layer, source.resolve() if target else source, inside(target or str(source.absolute())), wanted, skip)
    for path in sorted(wanted):
        layer.file(inside(path), os.path.realpath(path))
    layer.tar.close()


def configuration(arguments, digest):
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        sys.exit(f"image.py: images for {machine} are not known here")
    return {
        "architecture": ARCHITECTURES[machine],
        "os": "linux",
        "config": {
            "User": arguments.user,
            "WorkingDir": "/tmp",
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", *arguments.env],
            "Entrypoint": [f"/usr/local/bin/{Path(arguments.entrypoint).name}"],
            "Cmd": arguments.arguments or None,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "image.py"}],
    }


def digest_of(file):
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def put(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--name", required=True)
    parser.add_argument("--entrypoint", required=True)
    parser.add_argument("--user", default="65532:65532")
    parser.add_argument("--add", action="append", default=[], metavar="SOURCE[:TARGET]")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("arguments", nargs="*")
    arguments = parser.parse_args()
    layer_file = Path(arguments.out + ".layer")
    try:
        with open(layer_file, "wb") as out:
            write_layer(out, arguments)
        with open(layer_file, "rb") as content:
            digest = digest_of(content)
        image = json.dumps(configuration(arguments, digest)).encode()
        image_name = hashlib.sha256(image).hexdigest() + ".json"
        manifest = [{"Config": image_name, "RepoTags": [arguments.name], "Layers": ["layer.tar"]}]
        with tarfile.open(arguments.out, "w") as archive:
            put(archive, image_name, image)
            put(archive, "manifest.json", json.dumps(manifest).encode())
            archive.add(layer_file, "layer.tar")
    finally:
        layer_file.unlink(missing_ok=True)


main()
