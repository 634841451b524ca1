"""What each protocol fixes, in numbers and words. Importing this costs nothing.

Frozen: another choice of any of these is another version.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vergence.platform.errors import UserError, nearest


class Definition(NamedTuple):
    """version: under which the choice is frozen.  fixed: its numbers.  words: what is done, for readers of a figure.

    needs_bank: whether it classifies by labelled images.
    """

    version: str
    fixed: Mapping[str, Any]
    words: str
    needs_bank: bool = True


KNN = Definition(
    "knn-v1",
    {
        "k": 20,
        "temperature": 0.1,
        "features": "encoder output, float32, L2-normalised; vote exp(cosine / temperature)",
        "ties": "lower id, lower class",
    },
    "a test image gets the class voted by its nearest images of the bank (k 20, T 0.1), each with weight exp(s / T), "
    "s the cosine similarity of the encoder's float32 output, L2-normalised; ties go to the lower id and the lower class",
)

LINEAR = Definition(
    "linear-v1",
    {
        "features": "encoder output, L2-normalised, float64",
        "objective": "sum of cross-entropies + |w|^2 / (2 C); the bias is free",
        "tolerance": 1e-5,  # see linear.Regression.fit
        "C": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0),
        "choice": "C by top-1 on a drawn tenth of the bank, of equals the lower; refitted on the whole bank",
    },
    "logistic regression on the bank's L2-normalised output, in float64 by L-BFGS; C is chosen from 0.1, 0.3, 1, 3, "
    "..., 10000 on a drawn tenth of the bank, then all of the bank is fitted; the test set is used once",
)

ZERO_SHOT = Definition(
    "zero_shot-v1",
    {
        "image": "encoder output, float32, as the method maps it to the width of its texts",
        "class": "mean over templates of the L2-normalised texts, L2-normalised",
        "nearest": "largest cosine similarity; ties go to the lower class",
    },
    "a test image gets the class whose captions are nearest to it, by cosine similarity; a class stands where the mean of "
    "its captions, one a template, L2-normalised, points to; no labelled image is seen",
    needs_bank=False,
)

# by the name that a user types: that of the newest version
BANKED = {"knn": KNN, "linear": LINEAR}
DEFINITIONS = {**BANKED, "zero_shot": ZERO_SHOT}


def versions(names: Sequence[str], among: Mapping[str, Definition] = DEFINITIONS) -> list[str]:
    """The versions of protocols given by name or version, each once, in this order. UserError: there is no such one."""
    known = {name: each.version for name, each in among.items()}
    known |= {version: version for version in known.values()}
    for name in names:
        if name not in known:
            raise UserError(f"protocol {name!r}: there is no such one ({nearest(name, known)})")
    return list(dict.fromkeys(known[name] for name in names))
