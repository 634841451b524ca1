"""What outlives a step: commits, teachers, queues."""

from .names import COMMIT, MOCO, PARTS, SIMCLR, Faults

_PRUNES = f"{COMMIT}::test_prune_keeps_newest_and_best"

_COMMIT: Faults = {
    "best-is-the-worst": ("best = max(scores,", "best = min(scores,", _PRUNES),
    "one-commit-too-few": ("whole[-keep:]", "whole[-keep + 1 :]", _PRUNES),
    "oldest-is-newest": (
        'sorted(commits.glob("step-*"), reverse=True)',
        'sorted(commits.glob("step-*"))',
        f"{COMMIT}::test_state_comes_back_bit_equal",
    ),
}

_QUEUE: Faults = {
    "queue-pointer-stands": (
        "        self.pointer.add_(len(rows)).remainder_(size)\n",
        "",
        f"{PARTS}/test_queue.py",
    ),
    "queue-pointer-runs-out": (".remainder_(size)", "", f"{PARTS}/test_queue.py"),
    "oldest-rows-survive": ("rows[-size:]", "rows[:size]", f"{PARTS}/test_queue.py"),
}

_EMA: Faults = {
    "momentum-turned": ("new, 1 - momentum)", "new, momentum)", f"{PARTS}/test_ema.py"),
    "momentum-falls": (
        "(1 + math.cos(math.pi * progress))",
        "(1 - math.cos(math.pi * progress))",
        f"{PARTS}/test_ema.py",
    ),
    "teacher-learns": (".float().requires_grad_(False)", ".float()", f"{PARTS}/test_ema.py"),
}

_MOCO: Faults = {
    "keys-of-this-rank": ("collectives.gather(targets.k_bd)", "targets.k_bd", MOCO),
    "keys-stay-shuffled": ("k = k[order.argsort()]", "k = k[order]", MOCO),
    "enqueued-before-the-loss": (
        "negative = q @ self.queue.keys.T",
        "self.queue.enqueue(k)\n        negative = q @ self.queue.keys.T",
        MOCO,
    ),
}

_COLLECTIVES: Faults = {
    "gathered-gradient-of-this-rank": (
        "        grad = grads[0].contiguous().clone()\n        dist.all_reduce(grad)\n        return grad[rank()",
        "        grad = grads[0].contiguous().clone()\n        return grad[rank()",
        SIMCLR,
    ),
    "gathered-gradient-of-rank-0": (
        "grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]",
        "grad[: ctx.rows]",
        SIMCLR,
    ),
}

FAULTS = {
    "platform/runs/commit.py": _COMMIT,
    "methods/parts/queue.py": _QUEUE,
    "methods/parts/ema.py": _EMA,
    "methods/moco_v2.py": _MOCO,
    "methods/collectives.py": _COLLECTIVES,
}
