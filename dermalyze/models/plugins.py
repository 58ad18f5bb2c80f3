"""Plug-ins: Python modules and files that register timm models.

They are code, so only what the user names is run: in a config of their own, as `--plugin`, or in
Python.  A checkpoint or the config of a run that asks for a plug-in gets the one of that name among
these, and never has another one imported.
"""

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from dermalyze.config.schema import ModelConfig
from dermalyze.models import torchvision_operators  # noqa: F401  before the timm of a plug-in
from serving.errors import ConfigError
from serving.os_errors import reading

_named: dict[str, str] = {}  # what was imported, by its name without folder and ending


def load_plugins(plugins: Iterable[str]) -> None:
    """Import each plug-in that the user names, a module's name or a .py file, once.

    Raises:
        ConfigError: one is missing or cannot be imported.
        StorageError: a file cannot be read.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except FileNotFoundError as error:
            raise ConfigError(f"model.plugins names {plugin}, and there is no such file") from error
        except ImportError as error:
            raise ConfigError(f"model.plugins names {plugin}, which fails: {error}") from error
        _named[_name_of(plugin)] = plugin


def with_named_plugins(stored: ModelConfig) -> ModelConfig:
    """Return settings from a file with the user's plug-ins in place of those that it asks for.

    Raises:
        ConfigError: the user has named no plug-in of such a name.
    """
    if missing := [plugin for plugin in stored.plugins if _name_of(plugin) not in _named]:
        raise ConfigError(
            f"the model needs the plug-in {missing[0]!r}, and a stored file never loads code; "
            "if you trust it, name the module or .py file yourself: --plugin FILE_OR_MODULE"
        )
    return dataclasses.replace(stored, plugins=tuple(_named[_name_of(p)] for p in stored.plugins))


def _name_of(plugin: str) -> str:
    return Path(plugin).name.removesuffix(".py")


def _import_file(path: Path) -> None:
    name = "dermalyze_plugin_" + path.stem
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return
    with reading(path):
        if path.exists():
            if not path.is_file():
                raise ConfigError(f"model.plugins names {path}, which is not a file")
            path.open("rb").close()
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
