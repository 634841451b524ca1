"""Faults that the tests must notice, by file of the packages; tests/mutations.py tries them.

Changes without an effect that anyone could see (a second zeroing, statistics collected twice of which the mean is
taken) are left out.
"""

from . import control, data, evaluate, loop, state, train

MUTANTS = loop.FAULTS | train.FAULTS | data.FAULTS | state.FAULTS | evaluate.FAULTS | control.FAULTS
