"""Reading one stored stream from begin to end: the elements come from the core, device payloads are read here.

The description at the stream's end is looked for first. Each payload is read by it, by our own layout, or by both; what
counts is that the section's footer stands where the payload ends. A payload that nothing fits is passed over if its
footer can be found, and shown as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict, deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from qmig_e2k._core import MigrationError, StoredStream
from qmig_e2k.analyze import live
from qmig_e2k.analyze.compare import disagreements
from qmig_e2k.analyze.cursor import Cursor, StoredFile, open_all
from qmig_e2k.analyze.layout import Budget, Decoder, Layout, member, parse_device, parse_document, parse_layout
from qmig_e2k.analyze.model import Analysis, Block, Body, Device, Field
from qmig_e2k.analyze.ours import Known, Own
from qmig_e2k.analyze.resync import Search, footer, plausible
from qmig_e2k.analyze.values import size
from qmig_e2k.errors import StreamError
from qmig_e2k.limits import DEFAULT
from qmig_e2k.vmstate.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmig_e2k.limits import Limits

Source = str | os.PathLike[str] | bytes
DESCRIPTION = 0x06
HASH_STEP = 1 << 20
BLOCKS_NAMED = 8
"""Blocks without all of their pages that are named."""


def analyze(source: Source | Sequence[Source], *, hashes: bool = True, limits: Limits = DEFAULT) -> Analysis:
    """Everything about a stored stream. Damage is no exception: it is in the result, after all that stands before it.

    Args:
        source: path or bytes of the stream; several: the main channel first, then multifd channels in any order.
        hashes: compute the SHA-256 of every RAM block that is complete.
        limits: what the stream may ask for.

    Raises:
        OSError: a file cannot be read.
    """
    sources = [source] if isinstance(source, str | os.PathLike | bytes) else list(source)
    if not sources:
        raise ValueError("no file to analyse")
    files = open_all(sources)
    try:
        made = _Reading(files, limits).run()
        if hashes:
            _hash(made, sum(file.held for file in files), limits.hashed)
        return made
    finally:
        for file in files:
            file.close()


def _hash(analysis: Analysis, held: int, beyond: int) -> None:
    """Hash every complete block, as far as `held` bytes of files and what is granted beyond them last."""
    left, unhashed = held + beyond, []
    for index, block in enumerate(analysis.blocks):
        if not block.complete:
            continue
        if block.size > left:
            unhashed.append(block.name)
            continue
        left -= block.size
        try:
            block.sha256 = _hash_of(analysis, index, block.size)
        except MigrationError as error:
            analysis.notes.append(f"RAM cannot be read: {error}")
    if unhashed:
        named = ", ".join(unhashed[:BLOCKS_NAMED]) + (" and others" if len(unhashed) > BLOCKS_NAMED else "")
        named += " is" if len(unhashed) == 1 else " are"
        analysis.notes.append(
            f"{named} not hashed: RAM is more than the files hold ({size(held)}) and {size(beyond)} beyond; "
            "--extract-ram writes it, and sha256sum hashes that"
        )


def _hash_of(analysis: Analysis, index: int, length: int) -> str:
    made = hashlib.sha256()
    zeros = memoryview(bytes(HASH_STEP))
    done = 0
    # the empty run at the end is for the zeros before it
    for first, count in chain(analysis.ram_runs(index), ((length, 0),)):
        # whole steps: short runs that lie close together are read at once
        start = max(done, first // HASH_STEP * HASH_STEP if count else length)
        end = min(-(-(first + count) // HASH_STEP) * HASH_STEP, length)
        for at in range(done, start, HASH_STEP):
            made.update(zeros[: start - at])
        for at in range(start, end, HASH_STEP):
            made.update(analysis.read_ram(index, at, min(HASH_STEP, end - at)))
        done = max(end, done)
    return made.hexdigest()


LOOKS = {
    b"\x11\x22\x33\x44": "this is a multifd channel: name the main channel's file before it",
    **{
        magic: f"it is compressed: {program} -dc FILE | qmig-e2k analyze /dev/stdin"
        for magic, program in ((b"\xfd7zXZ\0", "xz"), (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
    },
}
"""What files may be that are given by mistake, by how they begin."""


class _Reading:
    """One pass over one stream."""

    def __init__(self, files: list[StoredFile], limits: Limits) -> None:
        self.limits = limits
        self.file = files[0]
        main, *channels = [os.dup(file.fd) for file in files]
        self.stream = StoredStream(main, channels, limits=limits.core)
        self.made = Analysis(self.file.length, files=frozenset(file.identity for file in files), stream=self.stream)
        self.known = Known()
        self.search = Search(self.file, limits)
        # a description may ask for anything; if it asks for too much, our own devices are read all the same
        self.described_budget, self.own_budget = Budget(limits.fields), Budget(limits.fields)
        self.raw_left = limits.shown_raw_all
        self.further: Counter[str] = Counter()
        self.live: set[int] = set()
        # a package (postcopy) holds elements like the stream itself, and ends with RUN
        self.package_end: int | None = None
        self.described: defaultdict[tuple[str, int], deque[Layout]] = defaultdict(deque)
        self.described_configuration: Layout | None = None
        self.description_at: int | None = None
        self._find_description()

    # -- the description

    def _find_description(self) -> None:
        """Look for it at the end of the file.

        It has no zero byte, so the last one of the file is the end marker's or one of its length's.
        """
        length = self.file.length
        tail_at = max(0, length - self.limits.description - 16)
        step = 1 << 16
        at = length
        zero = -1
        while at > tail_at and zero < 0:
            base = max(tail_at, at - step)
            found = self.file.read(base, at - base).rfind(b"\0")
            zero = base + found if found >= 0 else -1
            at = base
        for start in range(zero - 4, zero + 2):
            head = self.file.read(start, 5) if start > 0 else b""
            if len(head) == 5 and head[0] == DESCRIPTION and int.from_bytes(head[1:], "big") == length - start - 5:
                self.description_at = start
                self._take_description(self.file.read(start + 5, length))
                return

    def _take_description(self, text: bytes) -> None:
        if text.count(b",") > (most := self.limits.description_values):
            self.made.notes.append(f"the stream's description is not used: it has more than {most} values")
            return
        try:
            document = parse_document(text)
            page_size = member(document, "page_size", int, None)
            configuration = member(document, "configuration", list, None)
            if configuration is not None:
                self.described_configuration = parse_layout(configuration)
            devices = member(document, "devices", list)
        except (ValueError, TypeError) as error:
            self.made.notes.append(f"the description at the end is damaged: {error}")
            return
        if page_size not in {None, 4096}:
            self.made.notes.append(f"target pages of {page_size} bytes: RAM is read only with pages of 4096 bytes")
        damaged, why = 0, ""
        for device in devices:
            try:
                key = (member(device, "name", str), member(device, "instance_id", int))
                self.described[key].append(parse_device(device))
            except (ValueError, TypeError) as error:
                damaged, why = damaged + 1, why or str(error)
        if damaged:
            count = "a damaged device" if damaged == 1 else f"{damaged} damaged devices; the first"
            self.made.notes.append(f"the description at the end has {count}: {why}")

    # -- the stream

    def run(self) -> Analysis:
        made = self.made
        try:
            while (element := self.stream.next()) is not None:
                made.version = 3
                self._element(element)
                made.end_offset = self.stream.offset
            if self.stream.offset < self.file.length:
                made.notes.append(f"{self.file.length - self.stream.offset} bytes behind the end of the stream")
            self.stream.finish_channels()
        except MigrationError as error:
            made.error = {
                "kind": error.kind,
                "offset": made.end_offset if error.offset is None else error.offset,
                "path": error.path,
                "message": error.message,
            }
            if made.error["path"] == "header":
                made.error["message"] += self._looks_like()
            if made.version is None and made.error["path"] != "header":
                made.version = 3
        self._finish()
        return made

    def _element(self, element: dict[str, Any]) -> None:
        kind, offset = element["type"], element["offset"]
        if kind == "configuration":
            self._configuration(element)
        elif kind == "command":
            self._command(element)
        elif kind == "description":
            self.made.description = {"offset": offset, "length": element["length"]}
        elif kind == "eof":
            pass
        elif "pages" in element:
            self.live.add(element["section_id"])
            for name, count in element["pages"].items():
                self.made.pages[name] += count
        else:
            self._section(element)

    def _configuration(self, element: dict[str, Any]) -> None:
        uuid = element["uuid"]
        machine = element["machine"]
        self.known.machine = machine
        made = {name: element[name] for name in ("offset", "machine", "target_page_bits", "capabilities")}
        self.made.configuration = made | {"uuid": None if uuid is None else uuid.hex()}
        if self.described_configuration is None:
            return
        start = element["offset"] + 1
        stream = _Attempt(Decoder(Cursor(self.file, start), self.described_configuration, 1, self.described_budget))
        ours = _Attempt(Decoder(Cursor(self.file, start), self.known.configuration(machine).layout, 1, self.own_budget))
        differences = stream.differences(ours)
        if differences:
            self.made.configuration["disagreements"] = differences

    def _command(self, element: dict[str, Any]) -> None:
        command = {name: value for name, value in element.items() if name != "type"}
        if "ranges" in command:
            command["ranges"] = [list(pair) for pair in command["ranges"]]
        self._keep(self.made.commands, command, "commands")
        if command["name"] == "PACKAGED":
            self.package_end = self.stream.offset + command["size"]
        elif command["name"] == "POSTCOPY_RUN" and self.package_end is not None:
            if self.stream.offset != self.package_end:
                self.made.notes.append(
                    f"the package announced to end at {self.package_end:#x} ends at {self.stream.offset:#x}"
                )
            self.package_end = None

    def _looks_like(self) -> str:
        """What a file is that does not begin like a stream, as the end of a sentence."""
        begin = self.file.read(0, 6)
        if not begin:
            return "; the file is empty"
        what = next((what for magic, what in LOOKS.items() if begin.startswith(magic)), None)
        return "" if what is None else f"; {what}"

    # -- sections

    def _section(self, element: dict[str, Any]) -> None:
        start = self.stream.offset
        device = Device(
            element["idstr"],
            element["instance_id"],
            element["version_id"],
            element["offset"],
            0,
            element["type"],
            Body(element["idstr"], element["version_id"]),
        )
        section_id = element["section_id"]
        if device.kind == "start":
            self.live.add(section_id)
        try:
            end = self._payload(device, section_id, start)
            self.stream.reader.skip(end - start)
            self.stream.section_done()
        except Refusal as refusal:
            raise self._cut(device, start, refusal.stream_error(device.path)) from None
        except StreamError as error:
            raise self._cut(device, start, error) from None
        device.size = end - start
        self._keep(self.made.devices, device, "sections")
        if device.name == "e2k-machine":
            self.known.identify(device.body)

    def _cut(self, device: Device, start: int, error: StreamError) -> StreamError:
        """Keep what was read of a device in which the damage is."""
        device.partial = True
        last = device.body.fields[-1] if device.body.fields else None
        device.size = 0 if last is None else max(last.offset + last.size - start, 0)
        if last is not None:
            self._keep(self.made.devices, device, "sections")
        return error

    def _keep(self, kept: list[Any], one: Any, what: str) -> None:
        """Keep one more, unless there are enough already."""
        if len(kept) < self.limits.shown_elements:
            kept.append(one)
        else:
            self.further[what] += 1

    def _payload(self, device: Device, section_id: int, start: int) -> int:
        """Read the payload into the device; offset behind it."""
        if device.kind != "full" or device.name in live.READERS:
            end = self._live(device, section_id, start)
            if end is not None:
                return end
        attempts: list[_Attempt] = []
        waiting = self.described.get((device.name, device.instance_id))
        stream = None
        if device.kind == "full" and waiting:
            layout = waiting.popleft()
            stream = _Attempt(Decoder(Cursor(self.file, start), layout, device.version, self.described_budget))
            attempts.append(stream)
        ours: list[tuple[_Attempt, Own]] = []
        for own in self.known.find(device.name, device.instance_id, device.version):
            attempt = _Attempt(Decoder(Cursor(self.file, start), own.layout, device.version, self.own_budget))
            attempts.append(attempt)
            ours.append((attempt, own))
        fitting = [attempt for attempt in attempts if attempt.refusal is None and self._ends(attempt.end, section_id)]
        if ours:
            differences = [stream.differences(attempt) if stream else [] for attempt, _ in ours]

            # of several generations' layouts the one that is most like the stream's, or else the likeliest that fits
            def distance(index: int) -> tuple[int, int]:
                attempt, own = ours[index]
                return len(differences[index]) if stream else attempt not in fitting, own.doubt(attempt.body)

            best = min(range(len(ours)), key=distance)
            chosen, own = ours[best]
            device.reset, device.disagreements = own.reset, differences[best]
            if chosen in fitting and stream not in fitting:
                fitting = [chosen]
        if fitting:
            device.body = fitting[0].body
            device.source = "description" if fitting[0] is stream else "ours"
            return fitting[0].end
        return self._unknown(device, section_id, start, attempts)

    def _ends(self, at: int, section_id: int) -> bool:
        """Whether a payload may end at `at`."""
        if self.stream.footers is False:
            return plausible(self.file, at, self.live)
        mark = self.file.read(at, 5)
        if mark == footer(section_id):
            return True
        # at the cut of a stream the footer may be missing or incomplete, and then that is what is wrong
        cut = at + len(mark) >= self.file.length and footer(section_id).startswith(mark)
        return cut or (self.stream.footers is None and plausible(self.file, at, self.live))

    def _live(self, device: Device, section_id: int, start: int) -> int | None:
        """A section of a live handler with a grammar of its own; None: not one of those known."""
        reader = live.READERS.get(device.name)
        if reader is None:
            return None
        cursor = Cursor(self.file, start)
        reader(cursor, device.body, device.kind, self.own_budget)
        if not self._ends(cursor.offset, section_id):
            device.body.fields.clear()
            return None
        device.source = "ours"
        return cursor.offset

    def _unknown(self, device: Device, section_id: int, start: int, attempts: list[_Attempt]) -> int:
        """No layout fits: pass over the payload if its footer can be found, else the error of the first one."""
        why = "no layout is known"
        for attempt in attempts:
            refusal = attempt.refusal
            why = f"the layout does not fit: {'its end is no footer' if refusal is None else refusal.message}"
            break
        if self.stream.footers is not False:
            first = device.kind != "full"
            end = self.search.find_end(start, section_id, self.live, first=first, before=self.package_end)
            if end is not None:
                kept = min(end - start, self.limits.shown_raw, self.raw_left)
                self.raw_left -= kept
                raw = self.file.read(start, kept)
                device.body = Body(
                    device.name, device.version, [Field("data", "buffer", start, end - start, raw.hex())]
                )
                device.note = f"{why}; shown as it is, up to its footer"
                if end - start > kept:
                    device.note += f"; only the first {kept} of {end - start} bytes"
                return end
        if attempts:
            device.body = attempts[0].body
            if attempts[0].refusal is not None:
                raise attempts[0].refusal
            raise Refusal("the payload has another length than its layout", attempts[0].end, "bad-footer")
        text = "its layout is not known, and no footer ends it; the stream may be cut off in it"
        raise Refusal(text, device.offset, "unknown-section")

    # -- the end

    def _finish(self) -> None:
        made = self.made
        made.channels = self.stream.channels()
        made.pages["multifd"] = sum(channel["normal"] for channel in made.channels)
        made.pages["zero"] += sum(channel["zero"] for channel in made.channels)
        for said in self.stream.blocks():
            block = Block(said["name"], said["raw_name"], said["size"], said["page_size"], address=said["address"])
            block.complete = said["complete"]
            made.blocks.append(block)
            if said["mapped"]:
                made.pages["normal"] += said["pages"]
                made.pages["zero"] += block.size // 4096 - said["pages"]
        for channel, files in Counter(channel["id"] for channel in made.channels).items():
            if channel is not None and files > 1:
                made.notes.append(f"{files} files say that they are multifd channel {channel}: is one of them a copy?")
        for what, count in self.further.items():
            most = self.limits.shown_elements
            made.notes.append(f"{count} more {what} were read and are not shown: {most} are at most")
        if made.description is not None and made.description["offset"] != self.description_at:
            length = made.description["length"]
            why = f"it has {length} bytes, and {self.limits.description} are looked at at most"
            if length <= self.limits.description:
                why = "it is looked for at the very end of the file, and more bytes follow it"
            made.notes.append(f"the stream's description is not used: {why}")
        if made.error is not None:
            return
        missing = [block.name for block in made.blocks if not block.complete]
        if missing:
            hint = "are there multifd channels? name their files, too: FILE,FILE,..."
            if made.channels:
                hint = f"are there more multifd channels than the {len(made.channels)} named?"
            named = ", ".join(missing[:BLOCKS_NAMED])
            more = f" and {len(missing) - BLOCKS_NAMED} more blocks" if len(missing) > BLOCKS_NAMED else ""
            made.notes.append(f"pages of {named}{more} did not come; {hint}")
        if self.description_at is not None and made.description is None:
            made.notes.append("what stood for a description at the end of the file is none")


class _Attempt:
    """One payload read by one layout.

    Attributes:
        body: what was read.
        end: offset behind it.
        refusal: why it does not fit; None: it may.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.refusal: Refusal | None = None
        try:
            decoder.run()
        except Refusal as refusal:
            self.refusal = refusal
        self.body, self.end = decoder.body, decoder.cursor.offset

    def differences(self, ours: _Attempt) -> list[dict[str, Any]]:
        """Where this, the stream's description, and ours disagree."""
        return disagreements(self.body, ours.body)
