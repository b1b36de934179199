"""Frames over a descriptor: four bytes of length (big-endian), then a JSON object. The worker's end of the line.

    request = read_frame(0); write_frame(1, answer)

Travels beside `worker.py`; standard library only. Leaves out: the launcher's end (`worker_pool.py`), which must not
trust a length.
"""

from __future__ import annotations

import json
import os
from typing import Any


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
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(descriptor, view) :]
