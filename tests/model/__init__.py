"""The rules of who owns a machine, and of postcopy's recoveries, as a model small enough to try everything.

`protocol` says what either side may do next, `explore` tries all of it, `mapping` names the places in the code.
"""
