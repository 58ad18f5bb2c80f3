"""Passwords and tokens never leave the program."""

import pytest

from dermalyze.credentials import masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:secret@host/runs", "postgresql://ann:***@host/runs"),
        ("mysql+pymysql://ann:a/b@c@host:3306/runs is away", "mysql+pymysql://ann:***@host:3306/runs"
         " is away"),
        ("at 'http://ann:secret@host:5000/api', x@y", "at 'http://ann:***@host:5000/api', x@y"),
        ("https://token@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("https://host/x?token=abc&page=1&sig=de", "https://host/x?token=***&page=1&sig=***"),
        ("postgresql://host/runs?user=ann&password=abc", "postgresql://host/runs?user=ann&password="
         "***"),
    ],
)  # fmt: skip
def test_credentials_of_an_address_are_masked(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/dermalyze@champion",
        "models:/dermalyze@champion",
        "sqlite:////home/a@b/mlflow.db",
        "s3://bucket/a@b",
        "see http://host:8000/x and mail a@b",
    ],
)
def test_what_is_no_credential_stays(text):
    assert masked(text) == text


def test_the_values_of_mlflows_variables_are_masked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc123")
    assert masked("denied: Bearer abc123") == "denied: Bearer ***"
