"""Passwords and tokens, replaced wherever a text leaves the program."""

import os
import re
from urllib.parse import quote

_HIDDEN = "***"
_SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DERMALYZE_API_KEY", "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DATABRICKS_TOKEN", "HF_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET",
)  # fmt: skip
_SHORT = 6  # characters; a secret with fewer is replaced only where it is a word
_ADDRESSES = (  # user:password@ or token@; the password of a database may hold a slash
    re.compile(r"(?<=://)(?:([^\s/@:'\"]*):[^\s/'\"]*|[^\s/@:'\"]+)@"),
    re.compile(r"(?<!http://)(?<!https://)(?<=://)([^\s/@:'\"]*):[^\s'\"]*@"),
)
_IN_QUERY = re.compile(
    r"(?i)([?&;][\w.-]*(?:token|passw(?:or)?d|pwd|secret|signature|sig|credential|api_?key)[\w.-]*=)"
    r"[^&;\s'\"]+"
)


def masked(text: str) -> str:
    """Return the text with every password and token of an address replaced by `***`.

    The values of the environment variables that hold credentials are replaced as well, as they are
    and as an address has them.
    """
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        for form in {secret, quote(secret, safe="")} - {""}:
            if len(secret) < _SHORT:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", _HIDDEN, text)
            else:
                text = text.replace(form, _HIDDEN)
    for address in _ADDRESSES:
        text = address.sub(_without_password, text)
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", text)


def _without_password(found: re.Match[str]) -> str:
    return f"{found[1]}:{_HIDDEN}@" if found[1] else f"{_HIDDEN}@"
