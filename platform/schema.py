"""The form of what a run leaves behind: recipe, commits, run.json, card and index say it in `schema`.

1 is what has no `schema`: versions before 2026-11-26. Those runs are not gone on with; their encoders still load.
"""

SCHEMA = 2


def foreign(schema: int) -> str | None:
    """Whose files of another schema are, in words; None if they are of this one."""
    if schema == SCHEMA:
        return None
    age = "an older" if schema < SCHEMA else "a newer"
    return f"{age} version of Vergence (schema {schema}, this one has {SCHEMA})"
