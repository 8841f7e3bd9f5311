"""Names of layers, short enough for a picture: what all have in common is dropped, and no number is."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 30  # characters
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def common_prefix(names: Sequence[str]) -> str:
    """The leading parts, dot included, that all names share beside their last one."""
    parts = [name.split(".")[:-1] for name in names]
    if len(parts) < 2:
        return ""
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1 or column[0].isdecimal():
            break
        shared.append(column[0])
    return "".join(f"{part}." for part in shared)


def shortened(names: Sequence[str]) -> list[str]:
    """Return the names without their common prefix, at most about `WIDTH` characters long, all different.

    From a long name the words in its middle go first; numbers, the first word and the last two stay.
    """
    prefix = len(common_prefix(names))
    whole = ["".join(c if c.isprintable() else "?" for c in name[prefix:]) for name in names]
    short = [_shorter(name) for name in whole]
    return [s if short.count(s) == 1 else w for s, w in zip(short, whole, strict=True)]


def _shorter(name: str) -> str:
    parts = name.split(".")
    for i in range(1, max(1, len(parts) - 2)):
        if len(".".join(p for p in parts if p)) <= WIDTH:
            break
        if not parts[i].isdecimal():
            parts[i] = ""
    text = ".".join(parts)
    while "..." in text:
        text = text.replace("...", "..")
    text = text.replace("..", ELLIPSIS)
    if len(text) <= WIDTH + 4:
        return text
    first, last = text[: WIDTH // 2], text[-(WIDTH // 2) :]  # one word of great length
    return f"{first}{ELLIPSIS}{last}"
