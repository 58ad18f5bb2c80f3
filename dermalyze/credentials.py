"""Passwords and tokens, replaced wherever a text leaves the program."""

import os
import re

_HIDDEN = "***"
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY")
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

    The values of the environment variables that hold MLflow's credentials are replaced as well.
    """
    for name in _SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, _HIDDEN)
    for address in _ADDRESSES:
        text = address.sub(_without_password, text)
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", text)


def _without_password(found: re.Match[str]) -> str:
    return f"{found[1]}:{_HIDDEN}@" if found[1] else f"{_HIDDEN}@"
