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
        f"{_DATA}/test_shards.py::test_a_store_is_claimed_by_who_writes_first",
    ),
}

FAULTS = {
    "platform/data/side_file.py": _SIDE_FILE,
    "platform/data/stored.py": _STORED_FAULTS,
    "platform/data/target.py": _TARGET,
}
