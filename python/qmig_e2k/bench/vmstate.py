"""What device state costs during the downtime: 8 CPUs, every subsection there, every register off its reset value.

The model is the one that has most: of the subsections only those are absent that its ISA does not have. Saving includes
the text of the JSON description, loading the checks of each section and of the whole machine; neither touches a socket.
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
    from collections.abc import Callable

    from qmig_e2k.e2k import Machine

CPUS = 8
MODEL = "e2c3"
LIMIT_US = 5000.0
"""Most that saving, and loading, may take."""
_HEADER, _FOOTER = 14, 5
"""Bytes of a section around its name and payload."""


@dataclass(slots=True)
class _Section:
    """What was measured of the sections of one name, added up over its instances."""

    count: int = 0
    bytes: int = 0
    save: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)


def run(runs: int, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure; `runs` counted passes times 20."""
    passes = 20 * runs + 1
    source, target = _machine(seed=1), _machine(seed=2)
    sections = _each(_registry(source), _registry(target), passes)
    say(f"{'section':32} {'bytes':>8} {'save us':>8} {'load us':>8}")
    for name, section in sections.items():
        shown = name if section.count == 1 else f"{section.count} x {name}"
        say(f"{shown:32} {section.bytes:8} {_median(section.save):8.0f} {_median(section.load):8.0f}")
    saved, loaded, size = _whole(_registry(source), target, passes)
    say(f"{'all, with description and checks':32} {size:8} {_median(saved):8.0f} {_median(loaded):8.0f}")
    what = f"device state of e2k with {CPUS} {MODEL} CPUs"
    results = [_result(f"{what}, saved", saved, LIMIT_US), _result(f"{what}, loaded", loaded, LIMIT_US)]
    for name, section in sections.items():
        results += [_result(f"{name}, saved", section.save), _result(f"{name}, loaded", section.load)]
    return results


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
            begun = time.perf_counter()
            vmstate.save(description, obj, writer)
            between = time.perf_counter()
            raw = writer.getvalue()
            reader = Reader(raw)
            restart = time.perf_counter()
            load_section(theirs, reader, description.version_id)
            ended = time.perf_counter()
            section = sections.setdefault(ours.idstr, _Section())
            if number == 0:  # the first pass makes what is remembered ever after
                section.count += 1
                section.bytes += len(raw)
            else:
                section.save[-1] += (between - begun) * 1e6
                section.load[-1] += (ended - restart) * 1e6
    return sections


def _whole(source: Registry, target: Machine, passes: int) -> tuple[list[float], list[float], int]:
    """Save all sections with their description, and load them as they come; µs of each pass, and bytes."""
    _, described = stream_head(Configuration("e2k-1.0"), source.profile)
    registry = _registry(target)
    saves, loads = [], []
    for _ in range(passes):
        begun = time.perf_counter()
        saved = save_full(source)
        stream_tail(source.profile, saved.devices, described)
        saves.append((time.perf_counter() - begun) * 1e6)
        events: list[Any] = [_event(registry, device) for device in saved.devices]
        target.reset()  # as at the beginning of a migration
        reader = Reader(saved.data)
        begun = time.perf_counter()
        loading = Loading(registry)
        for event in events:
            reader.skip(_HEADER + len(event.idstr))
            loading.load(event, reader)
            reader.skip(_FOOTER)
        loading.check_complete()
        loads.append((time.perf_counter() - begun) * 1e6)
    return saves[1:], loads[1:], len(saved.data)


def _event(registry: Registry, device: Any) -> SimpleNamespace:
    """What the core says of a section when it comes."""
    idstr, number = device["name"], device["instance_id"]
    entry = next(entry for entry in registry if (entry.idstr, entry.instance_id) == (idstr, number))
    version = entry.handler.version_id
    return SimpleNamespace(type="full", idstr=idstr, instance_id=number, version_id=version, section_id=0, offset=0)


def _median(times: list[float]) -> float:
    return statistics.median(times)


def _result(name: str, times: list[float], limit: float | None = None) -> dict[str, Any]:
    ours = _median(times)
    return {
        "name": name,
        "unit": "us",
        "ours": ours,
        "reference": limit,
        "reference_name": "limit" if limit else None,
        "ratio": ours / limit if limit else None,
        "runs": {"ours": times, "reference": []},
    }
