"""Measures cradled beside Debian's containerd: ``python -m bench`` (``--help`` for its parts).

Samples of the daemons are interleaved (A B, B A, ...) in one run; a figure is a median, a ratio
the median of the ratios of one round. Absolute times belong to the machine, ratios carry over.
"""
