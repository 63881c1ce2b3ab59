"""The command `qmig-e2k`. Exit status: 0 done, 1 the work failed (one line on stderr says why), 2 bad usage."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from uuid import UUID

from qmig_e2k import completion, usage
from qmig_e2k._core import MigrationError, __version__, check_uri
from qmig_e2k.errors import migration_error
from qmig_e2k.limits import Limits
from qmig_e2k.migration.parameters import parse_size

__all__ = ["main"]

Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        return completion.answer(parser)
    options = parser.parse_args(arguments)
    handler: Handler = options.handler
    try:
        return handler(options)
    except MigrationError as error:
        print(f"qmig-e2k {options.command}: {error}", file=sys.stderr)
        return 2 if error.kind == "invalid-argument" else 1
    except OSError as error:
        print(f"qmig-e2k {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


def _models() -> Iterable[str]:
    from qmig_e2k.e2k.models import MODELS  # noqa: PLC0415  only `serve` and the shell need it

    return MODELS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmig-e2k",
        description="Live migration for an emulated e2k machine, in QEMU's own words.",
        epilog=usage.MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qmig-e2k {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    demo = _command(commands, "demo", "move a busy machine to another process and back, verified", usage.DEMO)
    demo.set_defaults(handler=_demo)
    doctor = _command(commands, "doctor", "what the kernel and the permissions allow here", usage.DOCTOR)
    doctor.add_argument("--json", action="store_true", help="as a JSON record")
    doctor.set_defaults(handler=_doctor)
    _add_bench(commands)
    _add_analyze(commands)
    _add_lab(commands)
    shell = _command(commands, "completion", "what makes a shell complete these commands", usage.COMPLETION)
    shell.add_argument("shell", choices=completion.SHELLS, help="the shell that shall read it")
    shell.set_defaults(handler=lambda options: completion.show(options.shell))
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, epilog: str
) -> argparse.ArgumentParser:
    """A command whose help says its purpose, its options, and more."""
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[:1].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _size(text: str) -> int:
    try:
        return parse_size(text, "M")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _machine(text: str) -> tuple[str, bool]:
    name, *properties = text.split(",")
    tags = False
    for item in properties:
        key, _, value = item.partition("=")
        if key != "tags" or value not in ("on", "off"):
            raise argparse.ArgumentTypeError(f"{item!r} is no property of a machine: there is tags=on|off")
        tags = value == "on"
    return name, tags


def _incoming(text: str) -> str:
    try:
        if text != "defer":
            check_uri(text)
    except MigrationError as error:
        if error.kind == "bad-uri":
            raise argparse.ArgumentTypeError(str(error)) from None
    return text  # a transport that is not built is refused when it is tried


def _qmp_address(text: str) -> str:
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if not (kind == "unix" and rest) and not (kind == "tcp" and host and port.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither unix:PATH nor tcp:HOST:PORT")
    return text


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = _command(commands, "bench", "measure, beside QEMU where one is on PATH", usage.BENCH)
    subjects = ("codec", "ram", "dirty", "precopy", "faults", "vmstate")
    bench.add_argument("subject", choices=subjects, help="what is measured, see below")
    bench.add_argument("--json", type=Path, metavar="OUT", help="write the record to OUT")
    bench.add_argument("--runs", type=int, metavar="N", help="counted runs of each case, default 5 (faults: 3)")
    bench.add_argument("--programs", type=Path, metavar="DIR", help="bare programs to measure beside (see make bench)")
    bench.add_argument("--size", type=_size, default=1 << 30, metavar="SIZE", help="RAM (faults only), default 1G")
    bench.set_defaults(handler=_bench)


def _add_lab(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lab = _command(commands, "lab", "experiments with postcopy: how long a fault takes, and why", usage.LAB)
    kinds = lab.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    faults = _command(kinds, "faults", "one run: touch memory that is still at the source", usage.FAULTS)
    add = faults.add_argument
    add("--ram", type=_size, default=256 << 20, metavar="SIZE", help="with suffix K M G; default 256M")
    add("--order", choices=("seq", "random", "zipf"), default="random", help="of the pages, default random")
    add("--access", choices=("read", "write"), default="read", help="what a touch does, default read")
    add("--faults", type=int, default=10_000, metavar="N", help="end after N, default 10000; 0: when all is touched")
    add("--page", type=_page, default=4096, metavar="4K|2M", help="page size of the memory, default 4K")
    add("--preempt", action="store_true", help="requested pages have a channel of their own")
    add("--background", action="store_true", help="the source also sends the rest, as fast as it can")
    add("--delay-us", type=int, default=0, metavar="N", help="added to each way of the link, default 0")
    add("--mbit", type=int, default=0, metavar="N", help="bandwidth of the link each way, default 0: no limit")
    add("--seed", type=int, default=0, metavar="N", help="of the order, default 0")
    add("--json", type=Path, metavar="OUT", help="write the record to OUT")
    add("--plot", type=Path, metavar="OUT.png", help="draw the histogram of each phase (needs matplotlib)")
    faults.set_defaults(handler=_lab_faults)
    sweep = _command(kinds, "sweep", "a grid of such runs", usage.SWEEP)
    sweep.add_argument("file", type=Path, metavar="FILE.toml", help="the grid")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="where the records go, default FILE")
    sweep.set_defaults(handler=_lab_sweep)


def _page(text: str) -> int:
    sizes = {"4K": 4096, "2M": 2 << 20}
    if text.upper() not in sizes:
        raise argparse.ArgumentTypeError(f"{text!r} is no page size: there are 4K and 2M")
    return sizes[text.upper()]


def _lab_faults(options: argparse.Namespace) -> int:
    from qmig_e2k.lab import command  # noqa: PLC0415  the other commands need none of it

    names = ("ram", "order", "access", "faults", "page", "preempt", "background", "delay_us", "mbit", "seed")
    conditions = {name: getattr(options, name) for name in names}
    return command.faults(conditions, json_out=options.json, plot_out=options.plot)


def _lab_sweep(options: argparse.Namespace) -> int:
    from qmig_e2k.lab import command  # noqa: PLC0415  the other commands need none of it

    return command.sweep(options.file, options.out)


def _add_analyze(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "analyze",
        help="read a stored stream: devices, RAM, commands; or compare two",
        usage="qmig-e2k analyze FILE[,FILE...] [--json | --tree] [--extract-ram DIR]\n"
        "       qmig-e2k analyze --diff A B [--json | --tree]",
        epilog=usage.ANALYZE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="?", metavar="FILE[,FILE...]", help="the stream; with multifd its main channel first"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as a JSON record")
    form.add_argument("--tree", action="store_true", help="as text for reading (the default), in colour on a terminal")
    parser.add_argument("--extract-ram", type=Path, metavar="DIR", help="write each RAM block to a file in DIR")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="what differs between two streams, by field")
    _add_limits(parser)
    parser.set_defaults(handler=_analyze, parser=parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        dest="limits",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="what a stream may make this side hold or do (docs/reference/limits.md)",
    )


def _limits(options: argparse.Namespace, *, live: bool = False) -> Limits:
    try:
        return Limits.parse(options.limits, live=live)
    except ValueError as error:
        raise migration_error("invalid-argument", f"--limit: {error}") from None


def _analyze(options: argparse.Namespace) -> int:
    from qmig_e2k.analyze import command  # noqa: PLC0415  the other commands need none of it

    limits = _limits(options)
    if options.diff is None and options.files is not None:
        return command.run(options.files, as_json=options.json, extract_ram=options.extract_ram, limits=limits)
    if options.diff is None:
        options.parser.error("name a stream, or two with --diff")
    if options.files is not None or options.extract_ram is not None:
        options.parser.error("--diff takes two streams and no --extract-ram")
    return command.run_diff(*options.diff, as_json=options.json, limits=limits)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _command(commands, "serve", "one process, one machine, controlled over QMP", usage.SERVE)
    add = serve.add_argument
    machine = add(
        "-M",
        dest="machine",
        type=_machine,
        default=("e2k", False),
        metavar="TYPE[,tags=on]",
        help="e2k (default), e2k-qemu or none",
    )
    completion.suggest(machine, lambda: ("e2k", "e2k-qemu", "none"))
    completion.suggest(add("-cpu", metavar="MODEL", help="CPU model, e8c when not given"), _models)
    add("-smp", type=int, metavar="N", help="vCPUs, 1 to 8, default 1 (none: 0)")
    add(
        "-m",
        dest="memory",
        type=_size,
        default=128 << 20,
        metavar="SIZE",
        help="RAM, with suffix K M G; a bare number is MiB; default 128M",
    )
    memory = serve.add_mutually_exclusive_group()
    memory.add_argument(
        "--mem",
        dest="backing",
        choices=("anon", "memfd", "hugetlb"),
        default="anon",
        help="backing of the main RAM block",
    )
    memory.add_argument(
        "--mem-path", type=Path, metavar="FILE", help="share RAM with FILE, whose bytes are its first content"
    )
    add("-bios", type=Path, metavar="FILE", help="raw bytes for the firmware")
    add("-kernel", type=Path, metavar="FILE", help="raw bytes instead of firmware (on none: into RAM at 0)")
    add("-S", dest="paused", action="store_true", help="do not start the guest")
    incoming = add(
        "--incoming",
        "-incoming",
        type=_incoming,
        metavar="URI",
        help="wait for a migration at URI; defer: until migrate-incoming",
    )
    completion.suggest(incoming, lambda: ("defer", "tcp:", "unix:", "fd:", "exec:", "file:"))
    add("-loadvm", "--loadvm", metavar="NAME", help="begin with snapshot NAME of --snapshot-dir")
    add("--snapshot-dir", type=Path, metavar="DIR", help="where savevm puts snapshots; made if it is not there")
    add("-name", metavar="NAME", help="name of the machine (query-name)")
    add("-uuid", type=UUID, metavar="UUID", help="UUID of the machine, compared if validate-uuid is on")
    add("--only-migratable", "-only-migratable", action="store_true", help="refuse whatever would block a migration")
    add(
        "--qmp",
        action="append",
        default=[],
        type=_qmp_address,
        metavar="ADDR",
        help="accept QMP clients at unix:PATH or tcp:HOST:PORT; repeatable",
    )
    add(
        "-global",
        dest="globals",
        action="append",
        default=[],
        metavar="migration.NAME=V",
        help="set a switch, capability or parameter; repeatable",
    )
    kinds = add(
        "-object",
        "--object",
        dest="objects",
        action="append",
        default=[],
        metavar="TYPE,id=ID[,NAME=VALUE...]",
        help="what tls-creds and tls-authz name: tls-creds-x509, authz-simple or authz-list; repeatable",
    )
    completion.suggest(kinds, lambda: ("tls-creds-x509,id=", "authz-simple,id=", "authz-list,id="))
    add("--format", choices=("2.9", "7.2", "10.0"), default="7.2", help="whose stream this side writes, default 7.2")
    guest = add(
        "--guest",
        default="idle",
        metavar="SPEC",
        help="model guest: idle, seq, random or zipf[,threads=N][,wss=SIZE][,rate=N][,read=F]",
    )
    completion.suggest(guest, lambda: ("idle", "seq", "random", "zipf"))
    add("--seed", type=int, default=0, metavar="N", help="seed of the model guest")
    _add_limits(serve)
    add("-v", "--verbose", action="store_true", help="log more")
    serve.set_defaults(handler=_serve)


def _serve(options: argparse.Namespace) -> int:
    from qmig_e2k.serve import Options, serve  # noqa: PLC0415  the other commands need none of it

    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="qmig-e2k: %(message)s")
    if options.loadvm is not None and options.incoming is not None:
        raise migration_error("invalid-argument", "-loadvm and --incoming exclude each other: both bring a machine")
    if options.loadvm is not None and options.snapshot_dir is None:
        raise migration_error("invalid-argument", f"-loadvm {options.loadvm}: say where it is with --snapshot-dir DIR")
    machine, tags = options.machine
    serve(
        Options(
            machine=machine,
            tags=tags,
            cpu=options.cpu,
            smp=options.smp,
            memory=options.memory,
            backing=options.backing,
            memory_path=options.mem_path,
            bios=options.bios,
            kernel=options.kernel,
            paused=options.paused,
            incoming=options.incoming,
            loadvm=options.loadvm,
            snapshot_dir=options.snapshot_dir,
            name=options.name,
            uuid=options.uuid,
            only_migratable=options.only_migratable,
            qmp=options.qmp,
            globals=options.globals,
            objects=options.objects,
            format=options.format,
            guest=options.guest,
            seed=options.seed,
            limits=_limits(options, live=True),
        )
    )
    return 0


def _demo(_: argparse.Namespace) -> int:
    return int(import_module("qmig_e2k.demo").run())


def _doctor(options: argparse.Namespace) -> int:
    from qmig_e2k import doctor  # noqa: PLC0415  the other commands need none of it

    report = doctor.record()
    print(json.dumps(report, indent=2) if options.json else doctor.text(report))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from qmig_e2k import bench  # noqa: PLC0415  the other commands need none of it

    return bench.run(options.subject, runs=options.runs, programs=options.programs, out=options.json, size=options.size)
