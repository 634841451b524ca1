"""Faults that the tests must notice, by file of the packages; tests/mutations.py tries them.

Changes without an effect that anyone could see (a second zeroing, statistics collected twice of which the mean is
taken) are left out.
"""

from . import clusters, control, data, evaluate, loop, methods, mirror, parts, sequences, state, stored, train
from .names import Faults

MUTANTS: dict[str, Faults] = {}
for _part in (
    loop,
    train,
    data,
    state,
    mirror,
    evaluate,
    control,
    methods,
    parts,
    clusters,
    sequences,
    stored,
):
    for _file, _faults in _part.FAULTS.items():
        MUTANTS[_file] = MUTANTS.get(_file, {}) | _faults
