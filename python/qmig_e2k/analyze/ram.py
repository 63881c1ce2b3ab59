"""RAM of an analysed stream as files."""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmig_e2k.analyze.model import Analysis

STEP = 1 << 20
NAME_MAX = 255


def file_names(names: Iterable[bytes]) -> list[str]:
    """A file name for each block (contract section 2).

    Bytes outside `A-Za-z0-9._-` become `_`; a clash, an empty name, `.` and `..` get `-N` appended, with the smallest
    N from 1 on that makes the name new. A name too long for a file is shortened before that.
    """
    made: dict[str, None] = {}
    # where the numbers of a name go on: a thousand blocks may all have the same
    numbers: defaultdict[str, int] = defaultdict(int)
    for raw in names:
        name = base = re.sub(rb"[^A-Za-z0-9._-]", b"_", raw).decode("ascii")
        while name in {"", ".", ".."} or name in made:
            numbers[base] += 1
            ending = f"-{numbers[base]}"
            name = base[: NAME_MAX - len(ending)] + ending
        made[name] = None
    return list(made)


def extract(analysis: Analysis, directory: str | os.PathLike[str]) -> Sequence[Path]:
    """Write one file a block, as long as the block, with holes where it is zero or did not come.

    Raises:
        OSError: it cannot be written, or is a file of the stream itself.
        MigrationError: the stream's file can no longer be read.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    paths = [folder / name for name in file_names(block.raw_name for block in analysis.blocks)]
    for index, (block, path) in enumerate(zip(analysis.blocks, paths, strict=True)):
        # a link that waits there under the block's name is not followed
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            said = os.fstat(fd)
            if (said.st_dev, said.st_ino) in analysis.files:
                text = "this is the stream itself; extract its RAM to another directory"
                raise FileExistsError(errno.EEXIST, text, str(path))
            file.truncate(0)
            file.truncate(block.size)
            for start, length in analysis.ram_runs(index):
                file.seek(start)
                for at in range(start, start + length, STEP):
                    file.write(analysis.read_ram(index, at, min(STEP, start + length - at)))
    return paths
