"""What device state costs during the downtime: 8 CPUs, every subsection there, every register off its reset value.

The model is the one that has most: of the subsections only those are absent that its ISA does not have. Saving includes
the text of the JSON description, loading the checks of each section and of the whole machine; neither touches a socket.
Times are those of the thread on its core, so that neighbours on a busy host do not count.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from qmig_e2k import vmstate
from qmig_e2k._core import Reader, Writer
from qmig_e2k.e2k import OPTIONS, build
from qmig_e2k.e2k.devices import SIC
from qmig_e2k.migration.stream import Loading
from qmig_e2k.savevm import (
    Configuration,
    GlobalState,
    Registry,
    VirtualClock,
    VmStateHandler,
    load_section,
    save_full,
    stream_head,
    stream_tail,
)
from qmig_e2k.testing import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qmig_e2k.e2k import Machine

CPUS = 8
MODEL = "e2c3"
WHOLE = f"e2k, {CPUS} {MODEL} CPUs, everything"
LIMIT_US = 5000.0
"""Most that saving, and loading, may take."""
_HEADER, _FOOTER = 14, 5
"""Bytes of a section around its name and payload."""
_KINDS = (", size", ", saved", ", loaded")
_NO_REFERENCE = {"reference": None, "reference_name": None, "ratio": None}


@dataclass(slots=True)
class _Section:
    """What was measured of the sections of one name, added up: how many, bytes, and µs of each pass."""

    count: int = 0
    bytes: int = 0
    save: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)


def run(runs: int) -> list[dict[str, Any]]:
    """Measure; `runs` counted passes times 20."""
    passes = 20 * runs + 1
    source, target = _machine(seed=1), _machine(seed=2)
    sections = _each(_registry(source), _registry(target), passes)
    whole = _whole(_registry(source), target, passes)
    return [
        *_results(WHOLE, whole, LIMIT_US),
        *(result for name, section in sections.items() for result in _results(name, section, None)),
    ]


def table(results: list[dict[str, Any]]) -> str:
    """The results for people: a line a section, the whole last."""
    lines = [f"{'':48} {'bytes':>8} {'save us':>8} {'load us':>8}"]
    for size, saved, loaded in zip(results[::3], results[1::3], results[2::3], strict=True):
        name = size["name"].removesuffix(_KINDS[0])
        lines.append(f"{name:48} {size['ours']:8} {saved['ours']:8.0f} {loaded['ours']:8.0f}")
    lines.append(lines.pop(1))
    lines.append(f"{'limit':48} {'':8} {LIMIT_US:8.0f} {LIMIT_US:8.0f}")
    return "\n".join(lines)


def _machine(seed: int) -> Machine:
    machine = build("e2k", 128 << 20, cpus=CPUS, model=MODEL, tags=True, options=OPTIONS)
    for device in machine.devices:
        if device.description is SIC:
            device.obj.nodes = device.obj.links = 2
    return filled(machine, seed)


def _registry(machine: Machine) -> Registry:
    registry = Registry()
    machine.register(registry, VirtualClock(), GlobalState(registry.profile))
    return registry


def _each(source: Registry, target: Registry, passes: int) -> dict[str, _Section]:
    """Save and load section by section."""
    pairs = [
        (ours, theirs, ours.handler.description, ours.handler.obj)
        for ours, theirs in zip(source, target, strict=True)
        if isinstance(ours.handler, VmStateHandler)
    ]
    sections: dict[str, _Section] = {}
    for number in range(passes):
        for section in sections.values():
            section.save.append(0)
            section.load.append(0)
        for ours, theirs, description, obj in pairs:
            writer = Writer()
            begun = time.thread_time()
            vmstate.save(description, obj, writer)
            between = time.thread_time()
            raw = writer.getvalue()
            reader = Reader(raw)
            restart = time.thread_time()
            load_section(theirs, reader, description.version_id)
            ended = time.thread_time()
            section = sections.setdefault(ours.idstr, _Section())
            if number == 0:  # the first pass makes what is remembered ever after
                section.count += 1
                section.bytes += len(raw)
            else:
                section.save[-1] += (between - begun) * 1e6
                section.load[-1] += (ended - restart) * 1e6
    return sections


def _whole(source: Registry, target: Machine, passes: int) -> _Section:
    """Save all sections with their description, and load them as they come."""
    _, described = stream_head(Configuration("e2k-1.0"), source.profile)
    registry = _registry(target)
    saves, loads = [], []
    for _ in range(passes):
        begun = time.thread_time()
        saved = save_full(source)
        stream_tail(source.profile, saved.devices, described)
        saves.append((time.thread_time() - begun) * 1e6)
        events: list[Any] = [_event(registry, device) for device in saved.devices]
        target.reset()  # as at the beginning of a migration
        reader = Reader(saved.data)
        begun = time.thread_time()
        loading = Loading(registry)
        for event in events:
            reader.skip(_HEADER + len(event.idstr))
            loading.load(event, reader)
            reader.skip(_FOOTER)
        loading.check_complete()
        loads.append((time.thread_time() - begun) * 1e6)
    return _Section(1, len(saved.data), saves[1:], loads[1:])


def _event(registry: Registry, device: Any) -> SimpleNamespace:
    """What the core says of a section when it comes."""
    idstr, number = device["name"], device["instance_id"]
    entry = next(entry for entry in registry if (entry.idstr, entry.instance_id) == (idstr, number))
    version = entry.handler.version_id
    return SimpleNamespace(type="full", idstr=idstr, instance_id=number, version_id=version, section_id=0, offset=0)


def _results(name: str, section: _Section, limit: float | None) -> Iterator[dict[str, Any]]:
    """Size, and medians of saving and loading."""
    shown = name if section.count == 1 else f"{name}, {section.count} sections"
    reference = {"reference": limit, "reference_name": "limit" if limit else None}
    runs: dict[str, list[float]] = {"ours": [], "reference": []}
    yield {"name": shown + _KINDS[0], "unit": "bytes", "ours": section.bytes, **_NO_REFERENCE, "runs": runs}
    for kind, times in zip(_KINDS[1:], (section.save, section.load), strict=True):
        ours = statistics.median(times)
        ratio = ours / limit if limit else None
        runs = {"ours": times, "reference": []}
        yield {"name": shown + kind, "unit": "us", "ours": ours, **reference, "ratio": ratio, "runs": runs}
