"""What a run tells while it trains."""

import pytest

from vergence.pipelines.show import ProgressLine
from vergence.platform.runs.records import Monitored


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"h_effective_rank": 7.0}, "epoch 2 · rank of h 7.0 · effective rank of h 7.0"),
        ({"h_effective_rank": 7.0, "knn": 0.5}, "epoch 2 · kNN 0.500 · effective rank of h 7.0"),
        (
            {"h_effective_rank": 7.0, "knn": 0.5, "zero_shot": 0.25},
            "epoch 2 · kNN 0.500 · zero-shot 0.250 · effective rank of h 7.0",
        ),
    ],
)
def test_scores_of_an_epoch_are_one_line(
    values: dict[str, float], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(10, 0, 8)
    line.update(Monitored(5, 0.0, 2, values))
    line.stop()
    assert capsys.readouterr().err.strip() == told
