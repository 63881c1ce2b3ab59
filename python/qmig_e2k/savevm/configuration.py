"""The configuration element, the head and the tail of a stream (spec/stream.md 1.2 to 1.4, 2.6)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qmig_e2k import vmstate
from qmig_e2k._core import Writer
from qmig_e2k.errors import stream_error
from qmig_e2k.savevm.text import description_text
from qmig_e2k.vmstate import VMStateDescription, buffer, capability, uint32, varray, vbuffer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from qmig_e2k.savevm.profile import Profile
    from qmig_e2k.vmstate import JsonObject

MAGIC, FILE_VERSION = 0x5145564D, 3
EOF, DESCRIPTION, CONFIGURATION = 0x00, 0x06, 0x07
PAGE_BITS = 12
PAGE_SIZE = 1 << PAGE_BITS
VALIDATED_CAPABILITIES = ("x-ignore-shared", "mapped-ram")
"""Capabilities that both sides must have alike."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Configuration:
    """What a machine says of itself before anything else.

    Attributes:
        machine: machine type as it is named on the wire (the versioned one, never an alias).
        capabilities: enabled ones among `VALIDATED_CAPABILITIES`.
        uuid: the machine's UUID, if it has one.
        send_uuid: it travels (`validate-uuid`).
        page_bits: log2 of the page size, if it is not the smallest that the CPU can have; None: not sent.
    """

    machine: str
    capabilities: Sequence[str] = ()
    uuid: bytes | None = None
    send_uuid: bool = False
    page_bits: int | None = None
    name: bytes = field(init=False, default=b"")
    len: int = field(init=False, default=0)
    caps_count: int = field(init=False, default=0)

    def fill(self) -> None:
        """Compute what travels from what is meant."""
        self.name = self.machine.encode()
        self.len = len(self.name)
        self.capabilities = [name for name in self.capabilities if name in VALIDATED_CAPABILITIES]
        self.caps_count = len(self.capabilities)


CONFIGURATION_STATE = VMStateDescription(
    "configuration",
    version_id=1,
    fields=[uint32("len"), vbuffer("name", "len", alloc=True)],
    pre_save=Configuration.fill,
    subsections=[
        VMStateDescription(
            "configuration/target-page-bits",
            fields=[uint32("page_bits")],
            needed=lambda config: config.page_bits is not None,
        ),
        VMStateDescription(
            "configuration/capabilities",
            fields=[
                uint32("caps_count"),
                varray("capabilities", capability, "caps_count", alloc=True),
            ],
            needed=lambda config: config.caps_count > 0,
        ),
        VMStateDescription(
            "configuration/uuid",
            fields=[buffer("uuid", 16)],
            needed=lambda config: config.send_uuid and config.uuid is not None,
        ),
    ],
)


def stream_head(config: Configuration, profile: Profile) -> tuple[bytes, JsonObject | None]:
    """File header and configuration element, and the element's JSON object (None: it is not sent)."""
    writer = Writer()
    writer.u32(MAGIC)
    writer.u32(FILE_VERSION)
    if not profile.configuration:
        return writer.getvalue(), None
    writer.u8(CONFIGURATION)
    made = vmstate.save(CONFIGURATION_STATE, config, writer, format=profile.format)
    return writer.getvalue(), made


def stream_tail(
    profile: Profile,
    devices: Sequence[JsonObject],
    configuration: JsonObject | None,
    mark: Mapping[str, Any] | None = None,
) -> bytes:
    """The end marker and the description.

    Args:
        profile: rules to write by.
        devices: objects of the FULL sections, in order.
        configuration: object of the configuration element, if it was sent.
        mark: members of the description that follow all others; readers pass over what they do not know.
    """
    writer = Writer()
    writer.u8(EOF)
    if profile.description:
        document: dict[str, Any] = {}
        if profile.facts.describes_configuration and configuration is not None:
            document["configuration"] = configuration
        document |= {"page_size": PAGE_SIZE, "devices": list(devices), **(mark or {})}
        text = description_text(document, loose=profile.facts.loose_json)
        writer.u8(DESCRIPTION)
        writer.u32(len(text))
        writer.write(text)
    return writer.getvalue()


def check_configuration(
    config: Configuration,
    machine: str,
    *,
    capabilities: Collection[str] = (),
    uuid: bytes | None = None,
    page_bits: int | None = None,
    offset: int | None = None,
) -> None:
    """Compare what a stream says of its machine with ours.

    Args:
        config: our machine.
        machine: received machine type; compared as a whole (QEMU accepts a prefix).
        capabilities: received capabilities.
        uuid: received UUID.
        page_bits: received log2 of the page size; None: absent, which means the smallest.
        offset: stream offset of the element.

    Raises:
        StreamError: `bad-configuration`.
    """

    def refuse(message: str) -> None:
        raise stream_error("bad-configuration", message, offset=offset, path="configuration")

    if machine != config.machine:
        refuse(f"machine {machine}, expected {config.machine}; start this side with the same machine type")
    unknown = [name for name in capabilities if name not in VALIDATED_CAPABILITIES]
    if unknown:
        refuse(f"unknown capability {unknown[0]}")
    ours = {name for name in config.capabilities if name in VALIDATED_CAPABILITIES}
    for name in sorted(ours ^ set(capabilities)):
        refuse(f"capability {name} is {'off' if name in ours else 'on'} at the source; set it alike on both sides")
    if (PAGE_BITS if page_bits is None else page_bits) != PAGE_BITS:
        refuse(f"pages of 2^{page_bits} bytes, expected 2^{PAGE_BITS}")
    if uuid is not None and config.uuid is None:
        log.warning("the stream's machine has the UUID %s, this one has none", uuid.hex())
    elif uuid is not None and uuid != config.uuid:
        assert config.uuid is not None
        refuse(f"UUID {uuid.hex()}, expected {config.uuid.hex()}")
