from typing import Any

import pytest

from vergence.methods.method import Method, ViewRule, at_least, exactly


@pytest.mark.parametrize(
    ("rule", "sizes", "allowed"),
    [
        (exactly(2), [32, 32], True),
        (exactly(2), [], False),
        (exactly(2), [32], False),
        (exactly(2), [32, 32, 32], False),
        (exactly(2), [32, 16], False),
        (exactly(2), [32, 32, 16], False),
        (at_least(2), [32] * 5, True),
        (at_least(2), [32, 32, 16], False),
        (at_least(2, small=True), [32, 32, 16, 16, 8], True),
        (at_least(2, small=True), [32, 16, 16], False),
        (at_least(2, small=True), [16, 16, 32, 32], False),  # those of full size come first
        (at_least(2, small=True), [32, 32, 16, 32], False),
    ],
)
def test_which_lists_of_views_a_rule_allows(rule: ViewRule, sizes: list[int], allowed: bool) -> None:
    assert rule.allows(sizes) == allowed


def test_a_rule_says_what_it_wants() -> None:
    assert str(exactly(2)) == "exactly 2 views of one size"
    assert str(at_least(2, small=True)) == "at least 2 views of one size, then any number of smaller ones"


def test_a_method_without_objective_cannot_be_built() -> None:
    class Half(Method):
        def forward(self, batch: Any) -> tuple[()]:
            return ()

    with pytest.raises(TypeError, match="criterion"):
        Half.build(None, None, None)
