"""Benchmarks are run by hand and seldom: here they are at least imported."""

import importlib
from pathlib import Path

import pytest

MODULES = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_finds_all_that_it_imports(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
