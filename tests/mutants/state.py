"""What outlives a step: commits, records, locks, indexes."""

from .names import COMMIT, RECORD, RECORDS, Faults

_PRUNES = f"{COMMIT}::test_prune_keeps_newest_and_best"

_COMMIT: Faults = {
    "best-is-the-worst": ("best = max(scores,", "best = min(scores,", _PRUNES),
    "one-commit-too-few": ("whole[-keep:]", "whole[-keep + 1 :]", _PRUNES),
    "attempt-that-lost-commits": (
        "if not owned():",
        "if False:",
        f"{COMMIT}::test_an_attempt_that_lost_the_run_cannot_commit",
    ),
    "nan-is-best": (
        "score if score is not None and math.isfinite(score) else None",
        "score",
        f"{COMMIT}::test_prune_keeps_no_commit_for_a_score_that_is_not_finite",
    ),
    "damaged-commits-are-kept-for-whole-ones": (
        "if (commit := read(path))]",
        'if (commit := Commit(path, {"step": 0}))]',
        f"{COMMIT}::test_a_damaged_commit_is_replaced_when_the_run_gets_there_and_else_deleted",
    ),
    "damaged-bytes-are-loaded": (
        " and not is_intact(commit):",
        " and False:",
        f"{COMMIT}::test_a_commit_whose_bytes_have_changed_is_set_aside_before_it_is_loaded",
    ),
    "drafts-of-others-go": (
        "if draft.name.endswith(f\".{made.manifest['attempt']}\") or _idle_s(draft) > DRAFT_LIFE_S:",
        "if True:",
        f"{COMMIT}::test_prune_leaves_drafts_of_other_attempts_until_they_are_old",
    ),
    "oldest-is-newest": (
        'sorted(commits.glob("step-*"), reverse=True)',
        'sorted(commits.glob("step-*"))',
        f"{COMMIT}::test_newest_passes_over_commits_that_are_not_whole",
    ),
}

_RECORD: Faults = {
    "spread-of-this-rank": ("rows = collectives.gather(", "rows = (", RECORDS + "[byol]"),
    "spread-over-both-views": (".flatten(1, -2)[:, 0]", ".flatten(0, -2)", RECORDS + "[byol]"),
    "record-of-the-commits-step-stays": (
        "record.step < start_step and",
        "record.step <= start_step and",
        "tests/platform/runs/test_records.py::test_cut_drops_later_steps_and_a_half_line",
    ),
    "ranks-may-differ": (
        "for other in everyone}) > 1]",
        "for other in everyone}) > 2]",
        f"{RECORD}::test_ranks_commit_what_they_hold_alike_a_bank_in_bf16_too_and_nothing_else",
    ),
    "who-lost-the-run-prunes": (
        "            if owns(job.run, job.attempt):\n",
        "            if True:\n",
        f"{RECORD}::test_who_has_lost_the_run_while_committing_does_not_prune",
    ),
}

_RUN = "tests/platform/runs/test_run.py"

_LOCK: Faults = {
    "holders-out-of-sight-are-dead": (
        "    if is_near(holder):\n",
        "    if True:\n",
        f"{_RUN}::test_a_holder_in_another_pid_namespace_of_this_host_keeps_its_lock",
    ),
    "boots-are-alike": (
        '        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),\n',
        "",
        f"{_RUN}::test_a_holder_out_of_sight_holds_while_its_heart_beats",
    ),
    "any-process-with-the-pid": (
        'return _started(holder["pid"]) == holder["started"]',
        'return _started(holder["pid"]) is not None',
        f"{_RUN}::test_a_reused_pid_is_not_the_holder",
    ),
    "heart-beats-for-anybody": (
        'if json.load(file)["attempt"] == attempt:',
        "if True:",
        f"{_RUN}::test_a_displaced_attempt_touches_its_successors_lock_no_more",
    ),
    "heart-stops-at-a-failure": (
        "suppress(OSError, ValueError), lock.open()",
        "suppress(ValueError), lock.open()",
        f"{_RUN}::test_the_heart_beats_on_after_a_touch_that_failed",
    ),
    "lost-facts-stay-lost": (
        'None if whole else commits.newest(path / "commits")',
        "None",
        f"{_RUN}::test_lost_facts_are_those_that_the_newest_whole_commit_knew",
    ),
}

_FILES: Faults = {
    "text-not-on-the-disk": ("        sync(temporary)\n", "", "tests/platform/test_files.py"),
    "name-not-on-the-disk": ("        sync(path.parent)\n", "", "tests/platform/test_files.py"),
}

_RECORDS = "tests/platform/runs/test_records.py"

_TAIL: Faults = {
    "another-file-is-read-on": (
        "if not same or now.st_size < self._offset:",
        "if now.st_size < self._offset:",
        f"{_RECORDS}::test_a_cut_file_that_gets_the_number_of_an_old_one_is_read_from_its_start",
    ),
    "cut-in-place-unnoticed": (
        "if not same or now.st_size < self._offset:",
        "if not same:",
        f"{_RECORDS}::test_a_file_cut_in_place_is_read_from_its_start",
    ),
}

_CACHE = "tests/platform/data/test_index_cache.py"

_INDEX_CACHE: Faults = {
    "indexes-in-use-go": (
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH",
        f"{_CACHE}::test_a_superseded_index_stays_as_long_as_a_process_lives_that_reads_it",
    ),
    "old-indexes-stay": (
        "_shards(path) in (shards, None)",
        "_shards(path) is None",
        f"{_CACHE}::test_an_index_goes_when_one_of_the_same_shards_takes_its_place",
    ),
    "uses-do-not-count": (
        "        os.utime(path)\n",
        "        pass\n",
        f"{_CACHE}::test_an_index_that_nobody_has_used_for_a_month_goes",
    ),
}

FAULTS = {
    "platform/files.py": _FILES,
    "platform/data/index_cache.py": _INDEX_CACHE,
    "platform/runs/commit.py": _COMMIT,
    "platform/runs/records.py": _TAIL,
    "platform/runs/run.py": _LOCK,
    "platform/train/record.py": _RECORD,
}
