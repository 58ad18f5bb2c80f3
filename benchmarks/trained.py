"""A trained run with its images and splits, as several benchmarks need them."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dermalyze.data.prepare import Prepared
from dermalyze.data.splits import Splits
from dermalyze.evaluation.folder import PREDICTIONS, VALIDATION
from dermalyze.evaluation.scored import Scored, read_scored
from dermalyze.models.checkpoint import load_member
from dermalyze.models.plugins import load_plugins
from dermalyze.models.shipped import Member
from dermalyze.tracking import fetched, require_run
from dermalyze.training.device import choose_device, in_full_precision
from dermalyze.training.ended import data_of_run
from dermalyze.training.job import BEST, CONFIG, EVALUATION, SPLIT_FILES, Here, stored_config
from dermalyze.training.limits import Runner
from serving.spec import ModelSpec


@dataclass(frozen=True)
class Trained:
    run_id: str
    member: Member
    spec: ModelSpec
    prepared: Prepared
    splits: Splits
    runner: Runner
    test: Scored  # what it said of its test split
    validation: Scored


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; `--plugin FILE_OR_MODULE` imports what the run's network needs."""
    parser.add_argument("--plugin", action="append", default=[], help="code of the run's network")
    arguments = parser.parse_args()
    load_plugins(arguments.plugin)
    return arguments


@contextmanager
def trained(run_id: str, data_dir: str) -> Iterator[Trained]:
    names = (BEST, CONFIG, *SPLIT_FILES, EVALUATION)
    with fetched(run_id, names) as (checkpoint, config_file, *_, evaluation):
        here = Here(data_dir=Path(data_dir))
        config = stored_config(config_file, here)
        prepared, splits = data_of_run(
            run_id, require_run(run_id), config, here, config_file.parent
        )
        member, spec = load_member(checkpoint)
        device = in_full_precision(choose_device(config.training))
        yield Trained(
            run_id=run_id,
            member=member,
            spec=spec,
            prepared=prepared,
            splits=splits,
            runner=Runner(prepared=prepared, device=device, batch_size=64),
            test=read_scored(evaluation / PREDICTIONS),
            validation=read_scored(evaluation / VALIDATION),
        )
