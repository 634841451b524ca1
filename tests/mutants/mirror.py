"""A run's commits in a store, and who owns it."""

from .names import Faults

_RUNS = "tests/platform/runs"
_MIRROR, _LEASE = f"{_RUNS}/test_mirror.py", f"{_RUNS}/test_lease.py"
_TROUBLE = f"{_RUNS}/test_mirror_trouble.py"
_HALF = f"{_MIRROR}::test_half_a_commit_is_passed_over_for_the_one_before"
_ORDER = f"{_MIRROR}::test_every_commit_is_copied_its_manifest_last_and_retention_is_the_runs"
_AWAY = f"{_TROUBLE}::test_a_store_that_is_away_stops_nothing_and_is_told_of_twice"
_NEWER = f"{_MIRROR}::test_the_newer_commit_wins_wherever_it_is"
_ELSEWHERE = f"{_MIRROR}::test_another_home_has_what_this_one_had"

_COPY: Faults = {
    "manifest-first": (
        '            for name in commit.manifest["files"]:\n',
        '            self._put(folder, MANIFEST, manifest)\n            for name in commit.manifest["files"]:\n',
        _ORDER,
    ),
    "mirror-keeps-everything": ("                self._prune(commit)\n", "", _ORDER),
    "mirror-prunes-its-best": (
        "kept = {path.name for path in",
        "kept = {whole[-1].path.name for path in",
        _ORDER,
    ),
    "state-is-copied-again": (
        "        if folder not in self._has:\n",
        "        if True:\n",
        f"{_MIRROR}::test_what_an_evaluation_adds_to_a_commit_is_copied_too",
    ),
    "amended-manifests-stay": (
        "if now != self._copied:",
        "if now[0] != (self._copied or [None])[0]:",
        f"{_MIRROR}::test_what_an_evaluation_adds_to_a_commit_is_copied_too",
    ),
    "end-does-not-wait": (
        "        self._thread.join()\n",
        "",
        f"{_TROUBLE}::test_an_end_waits_for_the_last_commit_and_says_for_what",
    ),
    "away-is-told-again-and-again": ("                self._told = True\n", "", _AWAY),
    "older-mirror-wins": ("or found[0].step > here.step", "or found[0].step > 0", _NEWER),
    "older-folder-wins": ("(here is None or found[0].step > here.step)", "here is None", _NEWER),
    "runs-are-mixed": (
        "ids[0] != ids[1]:",
        "ids[0] == ids[1] + '':",
        f"{_MIRROR}::test_another_run_of_the_name_is_not_gone_on_with",
    ),
    "who-lost-the-run-writes": (
        "        if not self.lease.may_write:\n",
        "        if False:\n",
        f"{_TROUBLE}::test_who_cannot_renew_its_lock_writes_nothing",
    ),
    "who-was-taken-over-goes-on": (
        "    if lease.taken_by is not None:\n",
        "    if False:\n",
        f"{_TROUBLE}::test_who_was_taken_over_stops_and_writes_no_more",
    ),
    "thread-outlives-ctrl-c": (
        "while not self.lease.is_over:",
        "while True:",
        f"{_TROUBLE}::test_ctrl_c_gives_the_run_back_at_once",
    ),
}

_REMOTE: Faults = {
    "bytes-are-not-looked-at": ('!= about["sha256"]:', "== '':", f"{_HALF}[another byte]"),
    "sizes-are-not-looked-at": (
        'files[name].size == file["bytes"] for name, file in named.items()',
        "name in files for name in named",
        f"{_MIRROR}::test_commits_of_the_wrong_size_are_none",
    ),
    "a-finished-run-elsewhere-has-its-exports": (
        ".but(finished=False, tracked=False, version=None)",
        "",
        _ELSEWHERE,
    ),
    "records-stay-behind": ("(RECORDS, run.logs / RECORDS)):", "):", _ELSEWHERE),
}

_LOCK: Faults = {
    "lock-is-taken-without-a-look": (
        "if found is not None and not found.is_free:",
        "if False:",
        f"{_LEASE}::test_what_this_process_could_not_give_back_it_may_take_again",
    ),
    "the-second-put-wins": (
        "self.store.put(self.url, json.dumps(own).encode(), replaces)",
        "self.store.put(self.url, json.dumps(own).encode())",
        f"{_LEASE}::test_who_was_taken_over_hears_of_it_and_leaves_the_lock_alone",
    ),
    "a-lost-answer-is-a-lost-run": (
        'found.holder.get("attempt") != self._me["attempt"]:',
        "True:",
        f"{_LEASE}::test_a_beat_whose_answer_was_lost_counts",
    ),
    "beats-are-no-sign": (
        "found.version != seen)",
        "False)",
        f"{_LEASE}::test_a_holder_elsewhere_that_lives_is_refused_by_name",
    ),
    "taken-at-once": (
        "                if _clock_s() - since < STALE_AFTER_S:\n",
        "                if False:\n",
        f"{_LEASE}::test_a_holder_elsewhere_without_a_sign_of_life_gives_way_after_the_stated_time",
    ),
    "conditions-are-believed": (
        "            self._prove()\n",
        "",
        f"{_LEASE}::test_a_store_without_conditional_put_is_refused",
    ),
    "writes-while-cut-off": (
        "return not self.is_over and _clock_s() - self._alive_s < WRITES_S",
        "return not self.is_over",
        f"{_LEASE}::test_a_store_that_is_away_for_a_while_costs_the_right_to_write_until_it_is_back",
    ),
    "never-given-back": ("released=True)", "released=False)", f"{_LEASE}::test_who_ends_gives_it_back"),
    "the-dead-are-waited-for": (
        "return is_over or not lives_here(self.holder)",
        "return is_over",
        f"{_LEASE}::test_a_holder_of_this_machine_that_is_dead_is_not_waited_for",
    ),
}

FAULTS = {
    "platform/runs/lease.py": _LOCK,
    "platform/runs/mirror.py": _COPY,
    "platform/runs/remote.py": _REMOTE,
}
