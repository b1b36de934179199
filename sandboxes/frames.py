"""Frames: four bytes of length (big-endian), then JSON. The worker's end of the line, and the line of a judging pair.

    request = read_frame(0); write_frame(1, answer)
    stdin = as_input(b"what a program reads")
    link = Link(descriptor); link.send([1]); link.receive()      # judge and candidate, over a socket pair

Travels beside `worker.py`; standard library only. Leaves out: the launcher's end (`worker_pool.py`), which must not
trust a length.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from typing import Any

LARGEST = 1 << 26


def read_frame(descriptor: int) -> dict[str, Any] | None:
    """The next frame, or None at the end of input."""
    header = _read_exactly(descriptor, 4)
    body = _read_exactly(descriptor, int.from_bytes(header, "big")) if len(header) == 4 else b""
    return json.loads(body) if body else None


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_frame(descriptor: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    if len(body) < 1 << 16:
        body = len(body).to_bytes(4, "big") + body  # in one piece, for haste
    else:
        os.write(descriptor, len(body).to_bytes(4, "big"))  # not copied, for room
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view) :]


def as_input(text: bytes) -> int:
    """A descriptor from which a program reads `text`, which it cannot change for the next one."""
    if not text:
        return os.open(os.devnull, os.O_RDONLY)  # anew for each: what is set on an open file would stay
    if len(text) <= 4096:  # what any pipe holds without a reader, also one of a user who has a thousand
        reading, writing = os.pipe()
        os.write(writing, text)
        os.close(writing)
        return reading
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text)
    fcntl.fcntl(descriptor, 1033, 0xF)  # sealed: neither written, grown nor shrunk, and its seals stay
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Gone(BaseException):
    """The other process has ended. Not an Exception, so that no test catches it."""


class Link:
    """JSON messages over a stream socket, each after four bytes of length."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)

    def send(self, message: Any) -> None:
        body = json.dumps(message).encode()
        try:
            self.socket.sendall(len(body).to_bytes(4, "big") + body)
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> Any:
        """The next message. ValueError, RecursionError: it is none."""
        length = int.from_bytes(self._exactly(4), "big")
        if length > LARGEST:
            raise Gone(f"a message of {length} bytes")
        return json.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                part = self.socket.recv(min(count, 1 << 20))
            except OSError as error:
                raise Gone(str(error)) from error
            if not part:
                raise Gone("it ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
