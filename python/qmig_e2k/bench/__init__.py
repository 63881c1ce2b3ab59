"""`qmig-e2k bench`: what a migration costs, as a ratio to a real QEMU measured in the same run.

These figures mislead easily: memory that was never touched is slow, cores that sleep are slow to wake, and neighbours are
noisy. So every series touches and frees several GiB first, alternates with the reference, drops the first pair and
reports medians (with the runs beside them).
"""
