"""Shards in stores: what stands beside them, who writes first."""

from .names import Faults

_DATA = "tests/platform/data"
_STORED = f"{_DATA}/test_stored.py"

_SIDE_FILE: Faults = {
    "another-version-is-as-good": (
        '("schema", "size", "version")] != [SCHEMA, shard.size, shard.version]',
        '("schema", "size")] != [SCHEMA, shard.size]',
        f"{_STORED}::test_a_shard_that_has_changed_is_read_again_and_no_other",
    ),
    "columns-of-other-chunks-count": (
        'name.endswith(".size") and each.null_count == len(each)',
        "False",
        f"{_DATA}/test_side_file.py::test_contents_come_back_as_they_were",
    ),
}

_STORED_FAULTS: Faults = {
    "what-was-read-is-forgotten": (
        "self._keep(shard, packed(contents, shard))",
        "packed(contents, shard)",
        f"{_STORED}::test_whoever_is_killed_half_way_goes_on_with_the_rest",
    ),
    "a-refusal-ends-it": (
        "except UserError as error:",
        "except ZeroDivisionError as error:",
        f"{_STORED}::test_where_nothing_may_be_written_it_is_kept_here",
    ),
    "a-stream-keeps-one-piece": (
        ">= BACK",
        ">= 0",
        f"{_STORED}::test_a_stream_is_walked_like_a_file[700]",
    ),
}

_TARGET: Faults = {
    "the-last-to-claim-is-right": (
        "_text(value), None)",
        "_text(value))",
        f"{_DATA}/test_target.py::test_a_store_is_claimed_by_who_writes_first",
    ),
}

_REMOTE = f"{_DATA}/test_remote.py"
_CACHE = f"{_DATA}/test_node_cache.py"

_REMOTE_FAULTS: Faults = {
    "each-reader-fetches-for-itself": (
        "if not cache.has(piece.name):",
        "if True:",
        f"{_REMOTE}::test_processes_that_want_the_same_chunks_share_them",
    ),
    "a-piece-is-one-sample": (
        "first = np.arange(0, len(self.index), self.access.chunk)",
        "first = np.arange(0, len(self.index))",
        f"{_REMOTE}::test_a_chunk_is_fetched_once_for_all_its_samples_and_readers",
    ),
    "all-lies-in-one-store": (
        "self._stores[shard].reading(",
        "self._stores[0].reading(",
        f"{_REMOTE}::test_a_set_may_lie_in_several_stores",
    ),
    "neighbours-are-strangers": (
        "offsets[1:] - ends[:-1] > GAP",
        "offsets[1:] - ends[:-1] > 0",
        f"{_REMOTE}::test_neighbours_are_asked_for_once",
    ),
    "nothing-comes-ahead": (
        "self._ahead = self._thread.submit(fetch)",
        "self._ahead = self._thread.submit(int)",
        f"{_REMOTE}::test_the_next_window_is_there_when_it_is_needed",
    ),
    "a-full-disk-ends-the-run": (
        "            except OSError as error:\n                self._bypass(self.cache.folder, error)\n",
        "            except ZeroDivisionError as error:\n                self._bypass(self.cache.folder, error)\n",
        f"{_REMOTE}::test_a_disk_that_is_full_costs_the_cache_and_nothing_else",
    ),
    "what-made-room-is-held": (
        "            self._drop(other)  # made room",
        "            str(other)  # made room",
        f"{_REMOTE}::test_a_piece_that_made_room_is_let_go",
    ),
}

_NODE_CACHE: Faults = {
    "the-digest-is-not-looked-at": (
        "and hashlib.sha256(data[:size]).digest() == data[size:]",
        "",
        f"{_CACHE}::test_a_damaged_piece_is_not_there",
    ),
    "once-whole-always-whole": (
        "if self._whole.get(name) == stamp:",
        "if name in self._whole:",
        f"{_CACHE}::test_a_change_is_seen_through_a_file_that_is_open",
    ),
    "the-newest-make-room": (
        "in sorted(found) if",
        "in sorted(found, reverse=True) if",
        f"{_CACHE}::test_what_was_not_used_for_longest_makes_room",
    ),
    "whatever-lies-there-makes-room": (
        "if entry.name.endswith(PIECE):",
        "if not entry.name.endswith(DRAFT):",
        f"{_CACHE}::test_what_others_keep_in_its_folder_stays",
    ),
    "a-use-leaves-no-trace": (
        "os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))",
        "os.fstat(file.fileno())",
        f"{_CACHE}::test_what_was_not_used_for_longest_makes_room",
    ),
    "drafts-lock-nobody-out": (
        "fcntl.LOCK_EX | fcntl.LOCK_NB)\n            except",
        "fcntl.LOCK_SH)\n            except",
        f"{_CACHE}::test_one_of_two_fetches_and_the_other_waits",
    ),
}

_STORE: Faults = {
    "a-listing-begins-anew": (
        "obstore.list(self._persistent,",
        "obstore.list(self._store,",
        "tests/platform/test_store.py::test_a_listing_of_many_pages_asks_for_a_page_again_not_for_all",
    ),
    "a-changed-object-is-read": (
        "if version is not None and found.version != version:",
        "if False:",
        "tests/platform/test_store.py::test_an_object_that_has_changed_is_not_read",
    ),
}

FAULTS = {
    "platform/data/node_cache.py": _NODE_CACHE,
    "platform/data/remote.py": _REMOTE_FAULTS,
    "platform/store.py": _STORE,
    "platform/data/side_file.py": _SIDE_FILE,
    "platform/data/stored.py": _STORED_FAULTS,
    "platform/data/target.py": _TARGET,
}
