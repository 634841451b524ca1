"""Sinkhorn as the official code of SwAV writes it, in loops over plain numbers."""

import math


def published(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """The official code's order: all divided by the sum of all, then columns to 1 / K, rows to 1 / N, times N."""
    n, k = len(scores), len(scores[0])
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        columns = [sum(row[j] for row in q) for j in range(k)]
        q = [[x / (columns[j] * k) for j, x in enumerate(row)] for row in q]
        q = [[x / (sum(row) * n) for x in row] for row in q]
    return [[x * n for x in row] for row in q]
