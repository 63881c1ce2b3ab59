"""`qmig-e2k lab`: experiments with postcopy whose conditions are chosen and written down.

`faults` is one experiment: two processes, memory that is touched in a known order, and how long each touch took.
`sweep` is many of them, `plot` shows what they found.
"""
