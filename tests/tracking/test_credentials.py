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


@pytest.mark.parametrize(
    "name",
    ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY",
     "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "DERMALYZE_API_KEY", "PGPASSWORD"],
)  # fmt: skip
def test_the_values_of_variables_with_credentials_are_masked(monkeypatch, name):
    monkeypatch.setenv(name, "abc/12 3")
    assert masked("denied: Bearer abc/12 3") == "denied: Bearer ***"
    assert masked("at /?x=abc%2F12%203") == "at /?x=***"


def test_a_short_password_is_masked_only_as_a_word(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "ml")
    assert masked("mlflow.db: denied 'ml'") == "mlflow.db: denied '***'"
