import pytest

from vergence.platform.errors import UserError, VergenceError
from vergence.platform.masking import masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:s3cret@host:5000/x", "http://***@host:5000/x"),
        ("https://s3cret@host", "https://***@host"),
        ("postgresql+psycopg2://u:s3@cret@db/x?sslmode=require", "postgresql+psycopg2://***@db/x?sslmode=require"),
        ("http://u:s3/cret@host", "http://***@host"),
        ("(http://u:s3cret@a) and http://u:s3cret@b failed", "(http://***@a) and http://***@b failed"),
        ("u:s3cret@host:5000", "***@host:5000"),
        ("/home/runs/http:/u:s3cret@host/x.tar", "/home/runs/http:/***@host/x.tar"),
        ("http://host/?token=s3cret&x=1", "http://host/?token=***&x=1"),
        ("url: /?access_token=s3cret/api&name=x", "url: /?access_token=***&name=x"),
        ("s3://b/k?X-Amz-Signature=s3cret#y", "s3://b/k?X-Amz-Signature=***#y"),
        ("postgresql://db/x?user=u&password=s3cret", "postgresql://db/x?user=u&password=***"),
    ],
)  # fmt: skip
def test_secrets_of_addresses_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "models:/NAME@champion or models:/NAME@ALIAS",
        "sqlite:////home/user@work/runs/mlflow.db",
        "file:///home/user@work/artifacts",
        "http://host:5000/#/experiments/1",
        "sklearn:digits?split=train&size=16",
        "train-000000.tar:00005 is cut off; write to a@b",
        "override 'optim.lr=0.1': at 12:30 someone@host",
    ],
)
def test_everything_else_is_left_alone(text: str) -> None:
    assert masked(text) == text


def test_errors_are_born_masked() -> None:
    for kind in (VergenceError, UserError):
        assert str(kind("no answer from http://u:s3cret@host")) == "no answer from http://***@host"
