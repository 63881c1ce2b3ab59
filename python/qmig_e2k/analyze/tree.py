"""An analysis for reading: an aligned text, with colour if `rich` is there and a terminal wants it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from qmig_e2k.analyze import values
from qmig_e2k.analyze.model import NESTED, Body
from qmig_e2k.analyze.values import size, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from qmig_e2k.analyze.diff import Difference
    from qmig_e2k.analyze.model import Analysis, Device, Field

Line = list[tuple[str, str]]
"""Pieces of text with the name of their style."""

INDENT = "  "
NAME_WIDTH = 32
STYLES = {
    "head": "bold",
    "name": "cyan",
    "dim": "dim",
    "changed": "yellow",
    "bad": "bold red",
    "good": "green",
    "a": "red",
    "b": "green",
}


def show(lines: Iterable[Line], out: TextIO | None = None) -> None:
    """Print lines, in colour if `out` (stdout) is a terminal, `rich` is installed and NO_COLOR is not set."""
    out = out or sys.stdout
    console = _console(out)
    for line in lines:
        if console is None:
            whole = "".join(piece for piece, _ in line).rstrip()
            out.write(whole.encode(out.encoding or "utf-8", "replace").decode(out.encoding or "utf-8") + "\n")
        else:
            console(line)


def _console(out: TextIO) -> Any:
    if not out.isatty() or os.environ.get("NO_COLOR"):
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return None
    console = Console(file=out, highlight=False)

    def put(line: Line) -> None:
        console.print(Text.assemble(*((piece, STYLES.get(style, "")) for piece, style in line)), soft_wrap=True)

    return put


# ---- one stream


def tree(analysis: Analysis) -> Iterator[Line]:
    """The lines of a whole analysis."""
    state = ("complete", "good") if analysis.complete else ("damaged", "bad")
    machine = "" if analysis.machine is None else f", machine {text(analysis.machine)}"
    version = "no version" if analysis.version is None else f"version {analysis.version}"
    yield [("stream", "head"), (f"  {version}{machine}, {size(analysis.length)}, ", ""), state]
    yield from _configuration(analysis)
    yield from _ram(analysis)
    if analysis.commands:
        yield [("commands", "head")]
        rows = [
            (f"{command['offset']:#x}", text(command["name"]), _arguments(command)) for command in analysis.commands
        ]
        yield from _table(rows, ("dim", "name", ""))
    if analysis.devices:
        yield [("devices", "head"), (f"  {len(analysis.devices)}", "dim")]
    changed = False
    for device in analysis.devices:
        marks = device.changed
        changed |= bool(marks)
        yield from _device(device, marks)
    if changed:
        yield [("* not at its value after power-on", "changed")]
    yield from ([("note  ", "bad"), (text(note), "")] for note in analysis.notes)
    if analysis.error is None:
        yield [("end", "head"), (f"  at {analysis.end_offset:#x}", "")]
    else:
        error = analysis.error
        where = f"{text(error['path'])}: " if error["path"] else ""
        yield [("error", "bad"), (f"  {error['kind']} at {error['offset']:#x}: {where}{text(error['message'])}", "")]


def _configuration(analysis: Analysis) -> Iterator[Line]:
    if analysis.configuration is None:
        return
    said = analysis.configuration
    yield [("configuration", "head"), (f"  at {said['offset']:#x}", "dim")]
    rows = [("machine", text(said["machine"]))]
    if said["target_page_bits"] is not None:
        rows.append(("target page", size(1 << said["target_page_bits"])))
    if said["capabilities"]:
        rows.append(("capabilities", text(", ".join(said["capabilities"]))))
    if said["uuid"]:
        rows.append(("uuid", said["uuid"]))
    yield from _table(rows, ("name", ""))
    yield from _disagreements(said.get("disagreements", []), INDENT)


def _ram(analysis: Analysis) -> Iterator[Line]:
    if not analysis.blocks:
        return
    total = size(sum(block.size for block in analysis.blocks))
    pages = ", ".join(f"{count} {name}" for name, count in analysis.pages.items() if count) or "none"
    yield [("ram", "head"), (f"  {total}; pages: {pages}", "dim")]
    rows = []
    for block in analysis.blocks:
        extra = "" if block.page_size == 4096 else f"  pages of {size(block.page_size)}"
        extra += "" if block.address is None else f"  at {block.address:#x}"
        hashed = block.sha256 or ("not hashed" if block.complete else "incomplete")
        rows.append((text(block.name) or '""', size(block.size), f"sha256 {hashed}" if block.sha256 else hashed, extra))
    yield from _table(rows, ("name", "", "dim", ""))
    rows = [
        (
            f"channel {'?' if channel['id'] is None else channel['id']}",
            f"{channel['packets']} packets",
            f"{channel['normal']} pages",
            f"{channel['zero']} zero",
        )
        for channel in analysis.channels
    ]
    yield from _table(rows, ("name", "", "", ""))


def _arguments(command: dict[str, Any]) -> str:
    known = {"name", "number", "offset"}
    return text(", ".join(f"{name} {_argument(value)}" for name, value in command.items() if name not in known))


def _argument(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{start:#x}+{length:#x}" for start, length in value)
    return f"{value:#x}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[tuple[str, ...]], styles: tuple[str, ...]) -> Iterator[Line]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(styles))] if rows else []
    for row in rows:
        yield [
            (INDENT, ""),
            *((f"{cell:<{width}}  ", style) for cell, width, style in zip(row, widths, styles, strict=True)),
        ]


# ---- devices


def _device(device: Device, changed: set[str]) -> Iterator[Line]:
    kind = "" if device.kind == "full" else f"{device.kind}, "
    about = f"  {kind}version {device.version}, {size(device.size)} at {device.offset:#x}"
    source = {"ours": "", "description": "", "none": ", unknown"}[device.source]
    yield [
        (INDENT, ""),
        (text(device.path), "head"),
        (about + source, "dim"),
        (" cut off" if device.partial else "", "bad"),
    ]
    yield from _body(device.body, INDENT * 2, "", changed)
    if device.note:
        yield [(INDENT * 2, ""), ("! ", "bad"), (text(device.note), "")]
    yield from _disagreements(device.disagreements, INDENT * 2)


def _disagreements(found: list[dict[str, Any]], indent: str) -> Iterator[Line]:
    for item in found:
        says = [f"{name} {_side(item[name])}" for name in ("stream", "ours") if item[name] is not None]
        yield [
            (indent, ""),
            ("! disagreement  ", "bad"),
            (f"{text(item['path'])}: {item['what']}: {', '.join(says)}", ""),
        ]


def _body(body: Body, indent: str, path: str, changed: set[str]) -> Iterator[Line]:
    plain = [item for item in body.fields if not _nested(item.value)]
    width = min(max((len(text(item.name)) for item in plain), default=0), NAME_WIDTH)
    for item in body.fields:
        if _nested(item.value):
            yield from _structures(item, item.value, indent, f"{path}{item.name}", changed)
        else:
            yield from _field(item, indent, width, mark=f"{path}{item.name}" in changed)
    for part in body.subsections:
        yield [(indent, ""), (text(part.name), "head"), (f"  subsection version {part.version}", "dim")]
        yield from _body(part, indent + INDENT, f"{path}{part.name}.", changed)


def _nested(value: Any) -> bool:
    return isinstance(value, Body) or (isinstance(value, list) and not NESTED.isdisjoint(map(type, value)))


def _field(item: Field, indent: str, width: int, *, mark: bool) -> Iterator[Line]:
    value = item.value
    if isinstance(value, list):
        rows = values.array(value, item.type)
    elif isinstance(value, str) and item.type not in {"capability", "summary"}:
        rows = values.buffer(value)
    else:
        rows = [values.one(value, item.type)]
    style = "changed" if mark else ""
    head = f"{text(item.name):<{width}}  "
    first = rows[0] if len(rows) == 1 else f"{len(value) // 2 if isinstance(value, str) else len(value)} {_unit(value)}"
    yield [(indent, ""), (head, "name"), (first, style), (" *" if mark else "", "changed")]
    if len(rows) > 1:
        yield from ([(indent + INDENT, ""), (row, style)] for row in rows)


def _unit(value: Any) -> str:
    return "bytes" if isinstance(value, str) else "elements"


def _structures(item: Field, value: Any, indent: str, path: str, changed: set[str]) -> Iterator[Line]:
    if isinstance(value, Body):
        yield [(indent, ""), (text(item.name), "name")]
        yield from _body(value, indent + INDENT, f"{path}.", changed)
        return
    if len(value) == 1:
        yield from _structures(item, value[0], indent, path, changed)
        return
    plain = [element.plain() if isinstance(element, Body) else element for element in value]
    if all(element == plain[0] for element in plain) and not any(name.startswith(f"{path}[") for name in changed):
        yield [(indent, ""), (text(item.name), "name"), (f"  {len(value)} × ", "dim")]
        yield from _element(value[0], indent, path, changed)
        return
    for index, element in enumerate(value):
        yield [
            (indent, ""),
            (f"{text(item.name)}[{index}]", "name"),
            ("" if isinstance(element, Body) else "  null", "dim"),
        ]
        yield from _element(element, indent, f"{path}[{index}]", changed)


def _element(element: Any, indent: str, path: str, changed: set[str]) -> Iterator[Line]:
    if isinstance(element, Body):
        yield from _body(element, indent + INDENT, f"{path}.", changed)


# ---- two streams


def differences(found: Sequence[Difference]) -> Iterator[Line]:
    """The lines of a comparison: path, then what is in either stream."""
    for item in found:
        yield [(text(item.path), "name")]
        for name, value in (("a", item.a), ("b", item.b)):
            yield [(f"{INDENT}{name}  {_side(value)}", name)]
        if item.detail:
            ranges = ", ".join(f"{start:#x}+{length:#x}" for start, length in item.detail["ranges"])
            yield [(f"{INDENT}{item.detail['pages']} pages differ: {ranges}", "")]


def _side(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return text(", ".join(f"{name} {part}" for name, part in value.items()))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10:
        return f"{value:#x}"
    if not isinstance(value, str):
        return values.one(value, "")
    # short ones are names or a few bytes; of long ones what a text is can be read
    rows = values.buffer(value) if len(value) >= 16 else []
    return rows[0] if len(rows) == 1 else text(value)
