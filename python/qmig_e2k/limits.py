"""What a stream may make this side hold or do: each limit has a name, a default, and can be set.

Time and memory of reading a stream are bounded by its size and by these numbers (docs/reference/limits.md). The other
limits of the format, such as the length of a compressed page, follow from it and cannot be set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qmig_e2k.migration.parameters import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT", "Limits"]

LIVE = ("sections", "ram_blocks", "package")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for one stream. The first three are obeyed by whoever reads one, the others by `analyze`.

    Attributes:
        sections: sections that are announced; each costs memory until the stream ends.
        ram_blocks: entries of the list of RAM blocks.
        package: bytes of a package of device state (postcopy), which is held whole by `serve`.
        description: bytes of the description at the end that are looked at; real ones have some hundred thousand.
        description_values: commas in it; each value costs some hundred bytes once it is parsed. A machine with 255 CPUs
            has a third of the default.
        fields: fields and elements of all sections together: for each one a description may name more than the stream
            has bytes.
        search: bytes that all searches for the ends of unknown sections may read.
        search_reach: bytes behind its header in which the end of one of them is looked for.
        hashed: bytes of RAM that are hashed beyond what the files hold: zeros cost a stream next to nothing.
        shown_raw: bytes of an unknown payload that are shown.
        shown_raw_all: bytes of all unknown payloads that are shown.
        shown_elements: commands that are shown, and sections: a stream could consist of them.
    """

    sections: int = 1 << 14
    ram_blocks: int = 1 << 10
    package: int = 128 << 20
    description: int = 16 << 20
    description_values: int = 1 << 21
    fields: int = 1 << 20
    search: int = 1 << 30
    search_reach: int = 64 << 20
    hashed: int = 16 << 30
    shown_raw: int = 1 << 20
    shown_raw_all: int = 64 << 20
    shown_elements: int = 1 << 16

    @classmethod
    def parse(cls, words: Iterable[str], *, live: bool = False) -> Limits:
        """From `NAME=NUMBER` with `-` in names and suffixes K, M, G, T; what is not named keeps its default.

        Args:
            words: all of them; the last one of a name counts.
            live: only those that whoever loads a machine obeys.

        Raises:
            ValueError: there is no limit of that name, or the number is none from 0 to 2^32-1 (2^63-1 for `hashed` and
                `search`).
        """
        made = {}
        names = {name.replace("_", "-"): name for name in (LIVE if live else [field.name for field in fields(cls)])}
        for word in words:
            name, equals, text = word.partition("=")
            if name not in names or not equals:
                raise ValueError(f"{word!r} is not NAME=NUMBER with one of {', '.join(names)}")
            number = parse_size(text)
            if number >= (1 << 63 if name in {"hashed", "search"} else 1 << 32):
                raise ValueError(f"{name} cannot be {text}: that is too large")
            made[names[name]] = number
        return cls(**made)

    @property
    def core(self) -> tuple[int, int, int]:
        """Those of `LIVE`."""
        return self.sections, self.ram_blocks, self.package


DEFAULT = Limits()
