"""What `--help` says below the options: what a command does, and lines to copy.

The lines work as they stand, but for the names of files and hosts.
"""

__all__ = ["ANALYZE", "BENCH", "COMPLETION", "DEMO", "DOCTOR", "FAULTS", "LAB", "MAIN", "SERVE", "SWEEP"]

MAIN = """\
  qmig-e2k demo                                 see a machine move, and what that costs
  qmig-e2k doctor                               what this host allows, and the remedy for what it does not
  qmig-e2k serve --help                         a machine of your own, and how to move it
  qmig-e2k analyze machine.stream               what is in a stored stream
  qmig-e2k COMMAND --help                       all about one command

exit status: 0 done; 1 the work failed, and one line says why; 2 bad usage.
"""

SERVE = """\
The machine is controlled as a QEMU is, over QMP: any QMP client does (qmp-shell of the package qemu.qmp, say). On a
terminal its migrations are shown while they happen; what is logged goes to standard error. `quit`, Ctrl-C and SIGTERM
end it.

A machine that waits, and one that moves there:

  qmig-e2k serve -m 256M --incoming tcp:0:4444 --qmp unix:there.qmp
  qmig-e2k serve -m 256M --guest random,rate=20000 --qmp unix:here.qmp
  qmp-shell here.qmp
  (QEMU) migrate uri=tcp:127.0.0.1:4444
  (QEMU) query-migrate

If its guest writes faster than the network carries, postcopy ends that; say so on both sides, then switch:

  -global migration.postcopy-ram=on             on both command lines
  (QEMU) migrate-start-postcopy                 at the source, while it migrates

Both sides need the same -M, -m, -smp and -cpu. With -M none it is RAM only, and any QEMU with -M none is a peer:

  qemu-system-x86_64 -M none -m 256M -incoming tcp:0:4444 -nographic
  qmig-e2k serve -M none -m 256M --qmp unix:here.qmp

A URI is tcp:HOST:PORT, unix:PATH, fd:NUMBER-OR-NAME, exec:COMMAND or file:PATH[,offset=N]. A guest is idle, or writes
seq(uentially), random(ly) or zipf-distributed; a seed makes it repeatable, and x-verify replays it and compares all of
RAM.

exit status: 0 ended as asked; 1 it could not run, and one line says why; 2 bad usage.
"""

DEMO = """\
A machine of 256 MiB whose guest never stops writing moves to another process by precopy: its memory first, in rounds.
It comes back by postcopy: it runs first, and fetches its memory as it needs it. Then every step of its guest is
replayed, and all of RAM compared. It takes some ten seconds and leaves nothing behind.

exit status: 0 it came home whole; 1 it did not.
"""

DOCTOR = """\
One line for each thing that this kernel and your permissions must allow for one feature or another; below what they
do not allow stands what to do. Nothing is changed. It is not an error if something is missing: exit status 0.
"""

BENCH = """\
  codec     XBZRLE, the zero test, zlib and zstd, one page after the other, beside memcmp
  ram       whole migrations of one content, by each way for pages
  dirty     what the kernel's dirty log costs
  precopy   a whole machine, idle and busy
  faults    postcopy: how long a vCPU waits for a page
  vmstate   saving and loading devices

Each case runs in turns with what it is measured beside; the medians are shown, with their ratio. A host that does other
things makes bad measurements. `make bench BENCH=faults` builds the bare programs first.
"""

LAB = """\
  qmig-e2k lab faults                           one run: 10,000 faults on a link that is as good as it can be
  qmig-e2k lab sweep grid.toml                  many, with each combination of what grid.toml lists

Both say more with --help.
"""

COMPLETION = """\
  bash   eval "$(qmig-e2k completion bash)"                  in ~/.bashrc
  zsh    eval "$(qmig-e2k completion zsh)"                   in ~/.zshrc, behind compinit
  fish   qmig-e2k completion fish | source                   in ~/.config/fish/config.fish

It asks qmig-e2k itself for the words, so it knows the options of the version that is installed. It needs the extra
`cli`: pip install 'qmig_e2k[cli]'.
"""

FAULTS = """\
A source process whose RAM is full, a destination process whose RAM is empty, postcopy between them: the machine runs on
the destination from the first moment, and its guest touches pages that are not there. Each touch is timed where it
happens (`touch`); the fault thread of the destination times its parts:

  read        from its waking up until it held this fault
  request     until the request for the page was the next to be sent
  first-byte  until the first byte of the page was there: the link twice, and the source
  place       until the page was in its place and its thread woken
  total       all four

The pages and their order depend on --seed alone, on every host. Examples:

  qmig-e2k lab faults                                            10,000 faults, nothing else on the link
  qmig-e2k lab faults --preempt --background --ram 1G --faults 0   beside all the rest of the memory
  qmig-e2k lab faults --delay-us 500 --mbit 1000 --json far.json --plot far.png

The link of --delay-us and --mbit is a relay in this process, exact to some ten microseconds; without both there is
none.
Memory with pages of 2M must be there before: sysctl vm.nr_hugepages=N, for both processes together.

exit status: 0 measured; 1 it came to nothing, and why; 2 bad usage.
"""

SWEEP = """\
Each key of FILE.toml is an option of `lab faults` without its dashes; a list makes it an axis of the grid:

  ram = "64M"
  faults = 2000
  preempt = [false, true]
  delay-us = [0, 100, 1000]

These are six runs. The records go to DIR as 000.json and so on, in the order of the table; sweep.png shows them all.
"""

ANALYZE = """\
Reads a stream that any QEMU wrote (a file: or exec: migration, or what was captured of a socket), of any machine.
Devices are read by the JSON description at its end, those of e2k machines by this project's own layouts too, and the
two are compared. With multifd, name the main channel's file first, then those of the channels: main,channel,channel.
A pipe will do:

  xz -dc machine.stream.xz | qmig-e2k analyze /dev/stdin
  qmig-e2k analyze --json machine.stream | jq '.devices[] | select(.name == "cpu").fields.psr'
  qmig-e2k analyze --extract-ram ram/ machine.stream
  qmig-e2k analyze --diff before.stream after.stream

Of a truncated or damaged stream everything before the damage is shown, then the error with its offset and place.

exit status: 0 read to its end; 1 damaged, or unreadable; 2 bad usage. With --diff, as diff(1) has it: 0 no difference,
1 a difference (or damage), 2 bad usage.
"""
