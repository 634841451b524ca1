"""The faults of tests/mutants/ keep up with the code; `python tests/mutations.py` tries them."""

from mutations import ROOT, all_mutants, stale


def test_every_fault_changes_text_that_is_there_once() -> None:
    mutants = all_mutants()
    assert stale(mutants) == []
    assert len({mutant.name for mutant in mutants}) == len(mutants)


def test_every_fault_names_a_test() -> None:
    for mutant in all_mutants():
        file, _, test = mutant.test.partition("::")
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text(), mutant.name
