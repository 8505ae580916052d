"""Kernels in C++ for what torch's own leave on the table on a CPU; built at their first use.

Each reads weights or keys once, in the order in which they lie in memory. All of them have a
definition in torch that they are tested against and that stands in where there is no compiler.
"""
