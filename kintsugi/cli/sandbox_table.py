"""`kintsugi doctor --sandbox`: the battery of hostile programs against every sandbox that this machine can open.

    found = examine_sandboxes(); print(table(found)); all_held(found)

Each entry is what `kintsugi.sandboxes.battery.examine` returns, or {"kind", "absent": why}. Leaves out: the programs
themselves and what each guarantee needs (`docs/sandboxes.md`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any


def examine_sandboxes(only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One entry a kind of sandbox, strongest first; about half a minute each. only: names of hostile programs."""
    from kintsugi.errors import KintsugiError
    from kintsugi.sandboxes.battery import examine
    from kintsugi.sandboxes.sandbox import AUTO_ORDER, sandbox_kinds

    found: list[dict[str, Any]] = []
    for kind in sorted(sandbox_kinds(), key=lambda kind: AUTO_ORDER.index(kind) if kind in AUTO_ORDER else 99):
        try:
            found.append({"kind": kind, **examine(kind, only=only)})
        except KintsugiError as error:
            found.append({"kind": kind, "absent": str(error)})
    return found


def all_held(found: Sequence[dict[str, Any]]) -> bool:
    """Whether nothing that is promised was breached; False too when no sandbox opens at all."""
    here = [one for one in found if "absent" not in one]
    return bool(here) and all(one["held"] for one in here)


def table(found: Sequence[dict[str, Any]], width: int = 100) -> str:
    """For people: per sandbox one line a guarantee, and below it what got through or went wrong."""
    lines: list[str] = []
    for one in found:
        if "absent" in one:
            lines += [*textwrap.wrap(f"{one['kind']}: not here: {one['absent']}", width, subsequent_indent="  "), ""]
            continue
        promised = sum(row["promised"] for row in one["guarantees"])
        said = "all that it promises held" if one["held"] else "SOMETHING PROMISED DID NOT HOLD"
        lines.append(
            f"{one['backend']} as {one['user']}: {said} ({promised} of {len(one['guarantees'])} guarantees promised, "
            f"{len(one['outcomes'])} hostile programs, {one['seconds']:.0f} s)"
        )
        for row in one["guarantees"]:
            lines += _row(row, width)
        lines.append("")
    return "\n".join(lines).rstrip()


def _row(row: dict[str, Any], width: int) -> list[str]:
    broken = row["wrong"] or (row["promised"] and row["breached"])
    state = "BROKEN" if broken else "held" if row["promised"] else "not promised"
    text = f"  {row['guarantee']:<18}{state:<14}{row['attacks']:>3}  {row['means']}"
    lines = textwrap.wrap(text, width, subsequent_indent=" " * 39)
    for line in (*row["breached"], *row["wrong"]):
        lines += textwrap.wrap(f"got through: {line}", width, initial_indent=" " * 39, subsequent_indent=" " * 41)[:2]
    return lines
