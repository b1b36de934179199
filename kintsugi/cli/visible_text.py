"""Text that a model or an environment wrote, as a terminal may have it: control characters are drawn, not obeyed."""

from __future__ import annotations


def visible(text: str) -> str:
    """`text` with control characters as pictures (of the second set, U+0080 to U+009F, as "�"), newlines and tabs as they
    are; half characters (lone surrogates, which JSON can say and no terminal can show) as question marks."""
    return text.encode(errors="replace").decode().translate(_DRAWN)


_DRAWN = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "␡",
    **dict.fromkeys(range(0x80, 0xA0), "�"),
}
