"""Where the stream's own description of a device and ours differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmig_e2k.analyze.model import leaves

if TYPE_CHECKING:
    from qmig_e2k.analyze.model import Body

MOST = 32
"""Differences of one device that are reported; more say nothing new."""


def disagreements(stream: Body, ours: Body) -> list[dict[str, Any]]:
    """Differences between the same payload read by either description, as dicts.

    Members: `path` of the field, `what` (`missing`: only we have it; `extra`: only the stream has it; `order`, `type`,
    `size`, `value`), and `stream` and `ours`, what each says.
    """
    theirs = {path: (item, value) for path, item, value in leaves(stream)}
    own = {path: (item, value) for path, item, value in leaves(ours)}
    made = [_difference(path, "missing", None, own[path][0].type) for path in own if path not in theirs]
    made += [_difference(path, "extra", theirs[path][0].type, None) for path in theirs if path not in own]
    if not made and list(theirs) != list(own):
        path = next(a for a, b in zip(theirs, own, strict=True) if a != b)
        made.append(_difference(path, "order", list(theirs).index(path), list(own).index(path)))
    for path, (item, value) in theirs.items():
        if path not in own:
            continue
        other, our_value = own[path]
        for what, a, b in (
            ("type", item.type, other.type),
            ("size", item.size, other.size),
            ("value", value, our_value),
        ):
            if a != b:
                made.append(_difference(path, what, a, b))
                break
    return made[:MOST]


def _difference(path: str, what: str, stream: Any, ours: Any) -> dict[str, Any]:
    return {"path": path, "what": what, "stream": stream, "ours": ours}
