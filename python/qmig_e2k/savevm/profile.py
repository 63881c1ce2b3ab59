"""What `--format` and the switches of `-global migration.NAME=V` change in the stream that we write.

The reader accepts all formats; a profile only matters to it where a stream cannot say what it leaves out
(configuration, footers, description). Facts: spec/stream.md 2.2, 2.6.2, 2.7, 7.10 and the golden streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmig_e2k.vmstate import Format


@dataclass(frozen=True, slots=True)
class _Generation:
    """Facts of one QEMU generation.

    Attributes:
        ram_section_id: id of the `ram` section; that of `timer` is 0 everywhere.
        first_section_id: id of the first device. The gaps are handlers that we do not have (`block`, `dirty-bitmap`).
        runstate_size: bytes of the name in `globalstate`.
        timer_hole: the field between the two of the `timer` section is named `unused` (else `dummy`).
        loose_json: description text with a space inside brackets and before colons, and no escapes.
        describes_configuration: the description begins with the configuration element.
        switchover_start: the command precedes the END sections.
    """

    ram_section_id: int
    first_section_id: int
    runstate_size: int
    timer_hole: bool
    loose_json: bool
    describes_configuration: bool
    switchover_start: bool


_GENERATIONS: dict[Format, _Generation] = {
    "2.9": _Generation(3, 4, 100, False, True, False, False),
    "7.2": _Generation(2, 4, 100, True, False, False, False),
    "10.0": _Generation(1, 3, 32, True, False, True, True),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules for one machine's streams.

    Attributes:
        format: QEMU generation whose layout is written.
        configuration: the configuration element is sent (`send-configuration`).
        footers: sections end with a footer (`send-section-footer`).
        global_state: the run state always travels (`store-global-state`).
        description: the JSON description is sent.
        send_switchover_start: SWITCHOVER_START is sent where the format has it (`send-switchover-start`).
    """

    format: Format = "7.2"
    configuration: bool = True
    footers: bool = True
    global_state: bool = True
    description: bool = True
    send_switchover_start: bool = True

    def __post_init__(self) -> None:
        if self.format not in _GENERATIONS:
            raise ValueError(f"format {self.format!r} is none of {', '.join(_GENERATIONS)}")

    @property
    def facts(self) -> _Generation:
        """What the generation fixes."""
        return _GENERATIONS[self.format]

    @property
    def switchover_start(self) -> bool:
        """SWITCHOVER_START precedes the END sections."""
        return self.facts.switchover_start and self.send_switchover_start
