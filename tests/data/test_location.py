"""What `--data-dir demo` and `auto` mean: the same to every command."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dermalyze.cli.main import main
from dermalyze.cli.options import data_option, run_data
from dermalyze.data.demo.dataset import MARKER
from dermalyze.data.location import DEMO, REAL, config_path, find_data
from serving.errors import DataError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DEMO.mkdir(parents=True)
    monkeypatch.setattr("dermalyze.data.location.make_demo_data", lambda folder: None)


def test_the_word_demo_is_the_drawn_data_and_a_path_is_the_folder():
    Path("demo").mkdir()
    assert find_data("demo", make=True) == (DEMO, True)
    assert find_data("./demo", make=True) == (Path("demo"), False)
    assert run_data("demo") == DEMO
    assert run_data("./demo") == Path("demo")


def test_auto_is_the_usual_data_of_a_new_run_and_the_data_of_an_old_one():
    Path("auto").mkdir()
    assert find_data("auto", make=True) == (DEMO, True)
    REAL.mkdir(parents=True)
    assert find_data("auto", make=True) == (REAL, False)
    (REAL / MARKER).touch()
    assert find_data("auto", make=True) == (REAL, True)
    assert run_data("auto") is run_data(None) is None
    assert run_data("./auto") == Path("auto")


def test_a_folder_that_does_not_exist_is_one_sentence_for_a_run_as_well():
    with pytest.raises(DataError) as caught:
        run_data("nowhere")
    assert str(caught.value) == (
        "no folder nowhere; --data-dir takes a folder of images, demo or auto"
    )


@pytest.mark.parametrize("word", ["demo", "auto"])
def test_a_word_beside_a_folder_of_that_name_is_a_warning(word, caplog):
    @click.command()
    @data_option("", "auto")
    def command(data_dir):
        click.echo(data_dir)

    assert CliRunner().invoke(command, ["--data-dir", word]).output == f"{word}\n"
    Path(word).mkdir()
    meant = {"demo": "the drawn demo data", "auto": "the default data"}[word]
    assert CliRunner().invoke(command, ["--data-dir", word]).output == f"{word}\n"
    assert caplog.messages == [
        f"--data-dir {word} means {meant}, not the folder {word} that is here; write ./{word} for "
        "the folder"
    ]
    assert CliRunner().invoke(command, ["--data-dir", f"./{word}"]).output == f"./{word}\n"
    assert CliRunner().invoke(command, []).output == "auto\n"


def test_every_command_takes_the_words_in_the_same_way():
    options = {
        name: option
        for name, command in main.commands.items()
        for option in command.params
        if option.name == "data_dir"
    }
    assert set(options) == {
        "train", "tune", "prepare-data", "data-issues", "evaluate", "recalibrate", "report",
        "leakage", "export-onnx", "export-web",
    }  # fmt: skip
    callbacks = {option.callback for option in options.values()}
    types = {type(option.type) for option in options.values()}
    assert len(callbacks) == len(types) == 1  # a path as type would make ./demo of demo


def test_the_config_of_a_kind_of_data_is_there():
    assert config_path(True).name == "demo.yaml"
    assert config_path(False).is_file()
