"""How a worker's interpreter starts: it reads the worker's files from its standard input, as the first frame, and runs them.

    [interpreter, "-I", "-S", "-c", BOOT, ...]          # then, in one go: worker.begin(sources(), settings)

So a container needs none of our files, and no program finds our folder's path in a traceback or a frame. Leaves out:
settings and requests, which are the worker's own frames (`worker.py`).
"""

from __future__ import annotations

from pathlib import Path

TRAVELLERS = (
    "frames", "plain_data", "handed", "child", "tests_text", "judging", "holdings", "watching", "tidying", "keeping",
    "confinement", "namespaces", "worker",
)  # fmt: skip
"""The worker's files, standard library only, in the order of their imports."""
BOOT = """
import json, os, sys, types
def exactly(count):
    parts = b""
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part: os._exit(0)
        parts += part
    return parts
for name, source in json.loads(exactly(int.from_bytes(exactly(4), "big"))).items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = "/kintsugi/" + name + ".py"
    exec(compile(source, module.__file__, "exec"), module.__dict__)
sys.modules["worker"].main()
"""


def sources() -> dict[str, str]:
    """The frame that `BOOT` reads: each file's name and its text."""
    return {name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in TRAVELLERS}
