"""One stream to the decoder in Rust and to the oracle, and where they disagree."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from oracle.memory import BLANK, COMPRESS, PAGE, XBZRLE
from oracle.reader import Reader, Reading
from oracle.source import Refused, Source
from qmig_e2k import StreamError
from qmig_e2k._core import StoredStream, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oracle.reader import Devices


def _refused(error: StreamError) -> Refused:
    channel = re.search(r"(?:^|/)channel (\d+)(?:/|$)", error.path)
    return Refused(error.kind, -1 if error.offset is None else error.offset, int(channel[1]) if channel else 0)


def _element(element: dict[str, Any]) -> dict[str, Any]:
    """An element of the oracle as the decoder has it."""
    made = dict(element)
    for name in ("machine", "idstr", "block"):
        if isinstance(made.get(name), bytes):
            made[name] = made[name].decode("utf-8", "replace")
    if "capabilities" in made:
        made["capabilities"] = [name.decode("utf-8", "replace") for name in made["capabilities"]]
    return made


def _plain(element: dict[str, Any]) -> dict[str, Any]:
    """What both say of an element."""
    made = {name: value for name, value in element.items() if name not in {"size", "blocks", "pages"}}
    if element["type"] == "command" and "size" in element:
        made["size"] = element["size"]
    if "pages" in element:
        pages = element["pages"]
        made["pages"] = pages if isinstance(pages, tuple) else (sum(pages.values()) - pages["zero"], pages["zero"])
    return made


class Disagreement(AssertionError):  # noqa: N818 - not a mistake of the caller
    """What the two say."""


def _same(oracle: Reading, elements: list[dict[str, Any]], refused: Refused | None) -> None:
    said = oracle.refused
    if (said is None) != (refused is None):
        raise Disagreement(f"the oracle: {said or 'accepted'}; Rust: {refused or 'accepted'}")
    if said is not None and refused is not None:
        wanted, found = ((one.kind, one.offset, one.channel) for one in (said, refused))
        if wanted != found:
            raise Disagreement(f"the oracle: {wanted}; Rust: {found}")
    wanted, found = [_plain(_element(one)) for one in oracle.elements], [_plain(one) for one in elements]
    for one, other in zip(wanted, found, strict=False):
        if one != other:
            raise Disagreement(f"the oracle: {one}; Rust: {other}")
    if len(wanted) != len(found):
        raise Disagreement(f"the oracle has {len(wanted)} elements, Rust {len(found)}")


def compare_decode(data: bytes, devices: Devices) -> Reading:
    """`decode`, with its own layouts, which `devices` must have too."""
    reader = Reader(data, devices)
    reader.memory.codings = reader.capabilities = frozenset()
    oracle = reader.read()
    try:
        elements, refused = decode(data), None
    except StreamError as error:
        elements, refused = error.partial, _refused(error)
    _same(oracle, elements, refused)
    return oracle


def compare_stored(files: Sequence[bytes], devices: Devices, again: Devices | None = None) -> Reading:
    """`StoredStream` with every coding of RAM; device payloads are consumed by the same `devices` for both.

    Args:
        files: main channel, multifd channels.
        devices: for the oracle.
        again: for the decoder; `devices` once more if they keep nothing.
    """
    from oracle.channels import Channels

    data, *channels = files
    reader = Reader(data, devices)
    if channels:
        reader.memory.channels = Channels(channels, reader.memory.blocks)
    oracle = reader.read()
    elements: list[dict[str, Any]] = []
    refused = None
    stream = StoredStream(_file(data), [_file(channel) for channel in channels], footers=True)
    try:
        while (element := stream.next()) is not None:
            if element["type"] in {"start", "part", "end", "full"} and "pages" not in element:
                _payload(stream, element, data, again or devices)
                stream.section_done()
            elements.append(element)
        if stream.offset < len(data):
            refused = Refused("trailing-data", stream.offset)
        else:
            stream.finish_channels()
    except StreamError as error:
        refused = _refused(error)
    except Refused as error:
        refused = error.with_traceback(None)
    _same(oracle, elements, refused)
    _same_memory(oracle, stream)
    return oracle


def _file(data: bytes) -> int:
    made = os.memfd_create("stream")
    os.write(made, data)
    return made


def _payload(stream: StoredStream, element: dict[str, Any], data: bytes, devices: Devices) -> None:
    source = Source(data)
    source.at = stream.offset
    try:
        devices(source, element["idstr"].encode(), element["instance_id"], element["version_id"])
    except KeyError:
        raise Refused("unknown-section", element["offset"]) from None
    stream.reader.skip(source.at - stream.offset)


def _same_memory(oracle: Reading, stream: StoredStream) -> None:
    blocks = stream.blocks()
    wanted = [(block.name, block.size) for block in oracle.blocks.values()]
    found = [(bytes(block["raw_name"]), block["size"]) for block in blocks]
    if wanted != found:
        raise Disagreement(f"blocks of the oracle: {wanted}; of Rust: {found}")
    for index, block in enumerate(oracle.blocks.values()):
        if len(block.pages) != blocks[index]["pages"]:
            raise Disagreement(f"{block.name!r}: {len(block.pages)} pages came; Rust: {blocks[index]['pages']}")
        for offset, page in block.pages.items():
            if stream.read(index, offset, PAGE) != page:
                raise Disagreement(f"{block.name!r}: the page at {offset:#x} differs")
        filled = {offset for offset, page in block.pages.items() if page != BLANK}
        at = 0
        while (run := stream.next_run(index, at)) is not None:
            filled -= {*range(run[0], sum(run), PAGE)}
            at = sum(run)
        if filled:
            raise Disagreement(f"{block.name!r}: no run has the page at {min(filled):#x}")


__all__ = ["COMPRESS", "XBZRLE", "Disagreement", "compare_decode", "compare_stored"]
