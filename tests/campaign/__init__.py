"""A campaign against the wire: whole migrations of a small busy machine, cut at one byte after the other.

`python -m campaign` (with `tests` on the path, or `make cuts`) runs it and writes its report.
"""
