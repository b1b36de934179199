"""Worker processes for ALFWorld: a bounded number, started when first asked, replaced when one dies or hangs.

    pool = Pool(workers=2, engine="lean", cache=None, timeout_s=60)
    answer = await pool.ask(key, {"op": "act", …})      # the same key goes to the same worker
    pool.close()                                          # no process is left; a later `ask` starts anew

With `workers=0` requests are answered in this process: fastest for authored games, and without the protection. What a
worker that dies or hangs does to requests: `worker_processes`. Left out: what the requests mean (`alfworld_worker`), and
replaying (the world's part).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kintsugi.sandboxes.environments.alfworld_worker import Worker
from kintsugi.sandboxes.environments.worker_processes import WorkerDied, WorkerProcess, refused

__all__ = ["Pool", "WorkerDied"]

_WORKER: Final = "kintsugi.sandboxes.environments.alfworld_worker"


class Pool:
    """workers: most processes at once, 0 for none. engine, cache: the worker's. timeout_s: longest wait for an answer."""

    def __init__(self, *, workers: int, engine: str, cache: str | Path | None, timeout_s: float) -> None:
        self._here = Worker(engine, cache) if workers == 0 else None
        self._slots = [WorkerProcess(_WORKER, [engine, str(cache or "")], timeout_s) for _ in range(workers)]

    @property
    def deaths(self) -> int:
        """Workers that had to be replaced so far."""
        return sum(slot.deaths for slot in self._slots)

    def processes(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.up]

    async def ask(self, key: str, request: Mapping[str, Any], *, start: bool = True) -> dict[str, Any]:
        """The answer; `{}` when the worker is not up and `start` is False.

        Raises WorkerDied, and the KintsugiError that the worker refused with."""
        if self._here is not None:
            return refused(self._here.answer(request))
        slot = self._slots[zlib.crc32(key.encode()) % len(self._slots)]
        if not start and not slot.up:
            return {}
        return await slot.ask(request)

    def close(self) -> None:
        """End every process and wait for it; harmless twice."""
        for slot in self._slots:
            slot.close()
        if self._here is not None:
            self._here.close()
