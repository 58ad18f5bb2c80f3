"""External validation: a model on images of other sources, which nothing is fitted on."""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from dermalyze.config.loading import read_yaml
from dermalyze.config.schema import DataConfig, EvaluationConfig
from dermalyze.data.audit import examine_table
from dermalyze.data.near_duplicates import near_copies
from dermalyze.data.patient_metadata import words_left_out
from dermalyze.data.pixel_store.decoder import THUMBNAIL_SIDE, thumbnail
from dermalyze.data.pixel_store.store import Pixels
from dermalyze.data.preparation import prepare
from dermalyze.data.readers import table
from dermalyze.data.readers.dataset import (
    TABLE_SUFFIXES,
    DataFolder,
    Dataset,
    ImageFile,
    ImageReader,
    file_at,
    open_dataset,
)
from dermalyze.data.table_columns import with_groups
from dermalyze.evaluation.evaluate import Evaluation, Predictions, seen_priors
from dermalyze.evaluation.external import External, Side, at_prevalence, decisions_of, drops
from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.predictions import (
    predictions_table,
    targets_of,
    write_predictions,
)
from dermalyze.evaluation.report.external import write_mistakes, write_overview
from dermalyze.evaluation.report.html import Mistake
from dermalyze.evaluation.robustness import choose_images
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.uncertainty.limits import limits_of
from dermalyze.models.torch_predictor import SkinLesionPredictor
from dermalyze.tracking import add_to_run
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.tracking.untracked import RUN_FILE, untracked_run
from dermalyze.workflows.evaluate import (
    facts_of,
    files_of_rows,
    logits_of_answers,
    read_labels,
    robustness_of,
)
from dermalyze.workflows.finished_run import FinishedRun, open_finished
from dermalyze.workflows.report import mistakes_of, picture_of, write_evaluation
from dermalyze.workflows.run_context import AS_IN_THE_RUN, BEST, EVALUATION, Here
from serving.atomic_write import whole_folder
from serving.base_predictor import AnyPredictor, Case, Outputs
from serving.batch import Request, predict_files, some
from serving.errors import ConfigError, DataError, ImageError, TrackingError
from serving.image_matching import plain_id
from serving.metadata import Metadata
from serving.os_errors import reading, temporary_folder
from serving.prediction import ImageInput, Prediction, open_image
from serving.predictor import Predictor
from serving.preprocess import to_pixels
from serving.session import share_cores
from serving.taxonomy import Taxonomy

NUM_MISTAKES = 48  # of the page with pictures
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]")  # of a folder, and of a metric in MLflow
_UNUSABLE = {  # kind of problem of `examine_table` -> why its images are left out
    "missing_image": "no image file",
    "two_labels": "several labels",
    "two_lesions": "several lesions",
    "unknown_label": "no label, or one that its data set does not have",
    "two_files": "two files that differ",
}
_SAME_ID = "has the id of a training image"
_SAME_LESION = "of a lesion that a training image shows"
_SAME_IMAGE = "equal or nearly equal to a training image"
_UNREADABLE = "cannot be read"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images of another source."""

    name: str
    folder: Path
    labels: Path | None = None  # the table of a folder of images alone; None: a reader knows both


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about a model."""

    sources: Sequence[Source]
    # Name of a source -> its label -> class of the model; "" stands for all sources.
    maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    prevalence: str = "none"  # mel=0.02,nv=0.9; labels or estimate: of each source
    corruptions: bool = False
    settings: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and, as far as it is at hand, the run that it is of."""

    predictor: AnyPredictor
    run: FinishedRun | None  # None: there is only a file
    here: Here

    @property
    def taxonomy(self) -> Taxonomy:
        """Its classes."""
        return self.predictor.spec.taxonomy

    def inside(self) -> tuple[str, Scored] | None:
        """Return its predictions for its own source, and what they are; None: not at hand.

        They are those of the test split, or of validation where the test split is elsewhere.
        """
        run = self.run
        if run is None or run.stored.find(EVALUATION) is None:
            return None
        found, settings = run.predictions, run.settings
        if found.scored.class_names != self.taxonomy.names:
            return None
        elsewhere = settings is not None and settings.data.leave_out != "none"
        if elsewhere and found.validation is not None:
            return "validation split, which also chose the epoch and the limits", found.validation
        return "test split", found.scored

    def trained(self) -> Floats | None:
        """Return the class shares (C,) that training made it see; None: not known."""
        if self.run is None or self.run.settings is None or not self.run.split_tables:
            return None
        targets = targets_of(self.run.split_tables["train"], self.taxonomy)
        return seen_priors(targets, len(self.taxonomy), self.run.settings)


@contextmanager
def model_of_run(run_id: str, here: Here = AS_IN_THE_RUN) -> Iterator[Model]:
    """Open the best epoch of a run."""
    with open_finished(run_id, here) as run:
        predictor = SkinLesionPredictor(run.stored.file(BEST))
        yield Model(predictor=predictor, run=run, here=here)


@contextmanager
def model_of_file(path: Path, here: Here = AS_IN_THE_RUN) -> Iterator[Model]:
    """Open an exported model and, if it lies in the folder of its run, that run as well."""
    predictor, run = Predictor(path, num_threads=1), None
    if (path.parent / RUN_FILE).is_file():
        with suppress(TrackingError):  # it is another program's
            kept = untracked_run(path.parent)
            if kept.run_id == predictor.spec.run_id:
                run = FinishedRun(RunFolder.of(kept), here)
    yield Model(predictor=predictor, run=run, here=here)


def sources_of(texts: Sequence[str]) -> list[Source]:
    """Read what `--external NAME=DIR` was given.

    Raises:
        ConfigError: one is of another form, or two have one name.
    """
    sources: dict[str, Source] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        if not sign or not folder or not _NAME.fullmatch(name):
            raise ConfigError(
                "--external must be NAME=FOLDER, the name of letters, digits, _, - and ., got "
                f"{text!r}"
            )
        if name in sources:
            raise ConfigError(f"--external names {name} twice; give each source its own name")
        sources[name] = Source(name=name, folder=Path(folder))
    return list(sources.values())


def source_of_images(images: Path, labels: Path | None) -> Source:
    """Return what `--images` and `--labels` name."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", images.resolve().name) or "images"
    return Source(name=name, folder=images, labels=labels)


def maps_of(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read what `--map` was given: [NAME:]LABEL=CLASS, or a YAML file.

    The file maps labels to classes, or names of sources to such maps.

    Raises:
        ConfigError: one is of another form.
    """
    maps: dict[str, dict[str, str]] = {}
    for text in texts:
        left, sign, class_name = text.rpartition("=")
        if sign:
            name, _, label = left.rpartition(":")
            if name not in ("", *names):
                name, label = "", left
            maps.setdefault(name, {})[label.strip()] = class_name.strip()
            continue
        content = read_yaml(Path(text), f"the class map {text}", yaml.BaseLoader)
        if not isinstance(content, dict):
            raise ConfigError(f"the class map {text} must map labels to classes of the model")
        for key, value in content.items():
            for label, class_name in value.items() if isinstance(value, dict) else [(key, value)]:
                name = key if isinstance(value, dict) else ""
                maps.setdefault(name, {})[str(label)] = str(class_name)
    if unknown := sorted(maps.keys() - {"", *names}):
        raise ConfigError(f"--map names {unknown[0]!r}, which is not a name of --external")
    return maps


def class_map_of(
    labels: Sequence[str], taxonomy: Taxonomy, given: Mapping[str, str]
) -> dict[str, str]:
    """Say which class of the model each label is; empty: the model lacks it.

    Unless a class is given, it is the one of the same name, or described by the label, in any
    letter case.

    Raises:
        ConfigError: a given class is not one of the model.
    """
    described = zip(taxonomy.descriptions, taxonomy.names, strict=True)
    known = {text.casefold(): name for text, name in described if text}
    known |= {name.casefold(): name for name in taxonomy.names} | {n: n for n in taxonomy.names}
    asked = {label.casefold(): class_name for label, class_name in given.items()}
    for label, name in given.items():
        if name not in known and name.casefold() not in known:
            raise ConfigError(
                f"--map gives {label} the class {name!r}, expected one of "
                f"{', '.join(taxonomy.names)}"
            )
    found = {}
    for label in labels:
        name = asked.get(label.casefold(), label)
        found[label] = known.get(name) or known.get(name.casefold(), "")
    return found


def evaluate_external(model: Model, asked: Asked, *, output: Path) -> list[Evaluation]:
    """Evaluate a model on each source; write pages to `output` and, with MLflow, into the run.

    Raises:
        DataError: a source cannot be read, or none of its images can be used.
        ConfigError: a class map or the prevalence cannot be used.
    """
    read = _read(model, asked.sources, asked.maps)
    known = _known_images(model)
    found = []
    for source, images in zip(asked.sources, read, strict=True):
        place = output if source.labels else output / source.name
        with whole_folder(place) as folder, ExitStack() as stack:
            found.append(_evaluate(model, asked, _answered(model, images, known), folder))
            run = model.run
            if run is not None and run.stored.artifact_uri:
                copy = stack.enter_context(temporary_folder())
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                split = found[-1].split
                add_to_run(run.stored, copy, split, found[-1].logged())
    if not any(source.labels for source in asked.sources):
        write_overview(output / "index.html", found)
    return found


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model says of the images of a source that can be used."""

    images: "_Images"
    rows: pd.DataFrame  # of a manifest, with their_label and decision
    answers: list[Prediction]  # one per row
    scored: Scored  # those of classes that the model has
    excluded: pd.DataFrame  # image_id, reason, training_image of the others
    reasons: dict[str, int]  # why images are left out -> how many
    unchecked: tuple[str, ...]  # what could not be checked, a sentence each


def answers_elsewhere(
    model: Model, sources: Sequence[Source], maps: Mapping[str, Mapping[str, str]]
) -> list[Answered]:
    """Let a model answer for the images of sources, all but those that it was trained on.

    Raises:
        DataError: a source cannot be read, or none of its images can be used.
        ConfigError: a class map cannot be used.
    """
    read, known = _read(model, sources, maps), _known_images(model)
    return [_answered(model, images, known) for images in read]


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a source that have one label and a file."""

    source: Source
    rows: pd.DataFrame  # of a manifest, with their_label; label is the class of the model or empty
    files: Mapping[str, ImageFile]
    class_map: dict[str, str]
    excluded: dict[str, int]  # why -> how many
    taxonomy: Taxonomy  # the classes of the model, the facts of the source
    has_lesions: bool  # false: no image has the id of its lesion


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of the images that a model was trained and validated on."""

    ids: frozenset[str]
    lesions: frozenset[str]
    names: tuple[str, ...]  # (M,), of the thumbnails
    thumbnails: Pixels  # uint8 (M, 32, 32)
    unchecked: tuple[str, ...]  # what cannot be checked, a sentence each


class _Reading(AnyPredictor):
    """The model, which reads images by their number and keeps a thumbnail of each."""

    def __init__(self, model: AnyPredictor, reader: ImageReader, files: Sequence[ImageFile]):
        self.spec, self.max_pixels = model.spec, model.max_pixels
        self.thumbnails: dict[int, bytes] = {}
        self._model, self._reader, self._files = model, reader, files

    def read(self, image: ImageInput, metadata: Metadata | None = None) -> Case:
        """Make the image of a number ready for the network."""
        number = int(str(image))
        data = self._reader.read(self._files[number])
        opened = open_image(data, max_pixels=self.max_pixels)
        self.thumbnails[number] = thumbnail(opened)
        return Case(to_pixels(opened, self.spec), opened.size, metadata)

    def run(
        self, pixels: Pixels, names: Sequence[str], metadata: NDArray[np.float32] | None = None
    ) -> Outputs:
        """Run the network."""
        return self._model.run(pixels, names, metadata)


def _read(
    model: Model, sources: Sequence[Source], maps: Mapping[str, Mapping[str, str]]
) -> list[_Images]:
    """Read the rows of all sources."""
    read = [_images_of(source, model, maps) for source in sources]
    for label in maps.get("", {}):
        if all(label.casefold() not in map(str.casefold, images.class_map) for images in read):
            labels = sorted({label for images in read for label in images.class_map})
            raise ConfigError(f"--map names the label {label!r}; the sources have {some(labels)}")
    return read


def _opened(place: Path, taxonomy: Taxonomy) -> Dataset:
    """Read a folder in any layout, or one table and the images in its folder."""
    if place.suffix.lower() not in TABLE_SUFFIXES or not place.is_file():
        return open_dataset(place, known_labels=taxonomy.names)
    with reading(place.parent):
        beside = sorted(path for path in place.parent.iterdir() if not path.name.startswith("."))
    entries = [p for p in beside if p == place or p.suffix.lower() not in TABLE_SUFFIXES]
    return table.read(DataFolder(place.parent, tuple(entries), DataConfig(), taxonomy.names))


def _images_of(source: Source, model: Model, maps: Mapping[str, Mapping[str, str]]) -> _Images:
    """Read the rows of a source, and find their files."""
    taxonomy, excluded = model.taxonomy, {}
    facts = Taxonomy(names=taxonomy.names)
    if source.labels is not None:
        settings = None if model.run is None else model.run.settings
        group_by = DataConfig().group_by if settings is None else settings.data.group_by
        rows = read_labels(source.labels, taxonomy, group_by)
        paths = files_of_rows(rows["image_id"].tolist(), source.folder, source.labels)
        files: Mapping[str, ImageFile] = {name: file_at(path) for name, path in paths.items()}
    else:
        dataset = _opened(source.folder, taxonomy)
        examined, files, facts = examine_table(dataset), dataset.files, dataset.taxonomy
        kinds = {problem.kind: len(problem.findings) for problem in examined.problems}
        excluded = {why: kinds[kind] for kind, why in _UNUSABLE.items() if kind in kinds}
        by_patient = any(examined.rows.get("patient_id", ()))
        rows = with_groups(examined.rows, "patient" if by_patient else "lesion")
    given = {**maps.get("", {}), **maps.get(source.name, {})}
    labels = sorted(set(rows["label"]))
    class_map = class_map_of(labels, taxonomy, given)
    of_source = {label.casefold() for label in labels}
    for label in maps.get(source.name, {}):
        if label.casefold() not in of_source:
            raise ConfigError(
                f"--map names the label {label!r}, which {source.name} does not have; it has "
                f"{', '.join(labels)}"
            )
    if not any(class_map.values()):
        raise DataError(
            f"no label of {source.name} ({some(labels)}) is a class of the model "
            f"({', '.join(taxonomy.names)}); name their classes with --map LABEL=CLASS"
        )
    if unknown := [label for label, name in class_map.items() if not name]:
        logger.warning(
            f"{source.name}: the model has no class {', '.join(unknown)}; these images test only "
            "its scope (--map LABEL=CLASS names the class of a label)"
        )
    rows = rows.assign(their_label=rows["label"], label=rows["label"].map(class_map))
    return _Images(
        source=source,
        rows=rows.reset_index(drop=True),
        files=files,
        class_map=class_map,
        excluded=excluded,
        taxonomy=replace(
            taxonomy,
            title=facts.title or source.name,
            license=facts.license,
            citation=facts.citation,
            not_recorded=facts.not_recorded,
        ),
        has_lesions=bool((rows["group"] != rows["image_id"]).any()),
    )


def _known_images(model: Model) -> _Known:
    """Return the images that the model was trained and validated on, as far as they are at hand."""
    run, here, spec = model.run, model.here, model.predictor.spec
    splits = {} if run is None else run.split_tables
    rows = pd.concat([splits[s] for s in ("train", "val")]) if splits else pd.DataFrame()
    ids = rows["image_id"].tolist() if splits else []
    thumbnails = np.zeros((0, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    names: tuple[str, ...] = ()
    folder = here.data_dir
    if folder is None and run is not None and (kept := run.stored.params.get("data.dir")):
        folder = Path(kept) if Path(kept).is_dir() else None
    unchecked = []
    if folder is None:
        unchecked.append(
            "Not checked: whether images are equal or nearly equal to training images, because "
            "those are not at hand; --data-dir names their folder."
        )
        if not ids:
            unchecked.append(
                "Not checked: whether images have the id of a training image, because the model "
                "file does not list them."
            )
    else:
        settings = None if run is None else run.settings
        data = DataConfig() if settings is None else settings.data
        if here.prepared or not Path(data.prepared).is_dir():
            data = replace(data, prepared=here.prepared or "auto")
        prepared = prepare(folder, replace(data, allow_problems=True))
        if prepared.fingerprint != spec.data_fingerprint:
            unchecked.append(
                f"The images in {folder.name} are not exactly those that the model was trained "
                "on; others may be missing from the check."
            )
        stored = prepared.manifest["image_id"]
        chosen = stored.isin(ids) if ids else pd.Series(True, stored.index)
        if not ids:
            rows, ids = prepared.manifest, stored.tolist()
        names, thumbnails = tuple(stored[chosen]), prepared.stored.thumbnails()[chosen]
    return _Known(
        ids=frozenset(map(_id_of, ids)),
        lesions=frozenset(rows.get("lesion_id", ())),
        names=names,
        thumbnails=thumbnails,
        unchecked=tuple(unchecked),
    )


def _id_of(text: str) -> str:
    return plain_id(text)[0].casefold().removesuffix("_downsampled")


def _answers(model: Model, images: _Images) -> tuple[list[Prediction | ImageError], Pixels]:
    """Let the model answer for N images; return the answers and thumbnails, uint8 (N, 32, 32)."""
    rows, spec = images.rows, model.predictor.spec
    paths = [Path(str(number)) for number in range(len(rows))]
    request = Request()
    if spec.metadata is not None:
        for sentence in words_left_out(rows, spec.metadata):
            logger.warning(f"{images.source.name}: {sentence}")
        request = Request(metadata=dict(zip(paths, facts_of(rows, spec.metadata), strict=True)))
    workers, _ = share_cores(len(rows))
    answers = []
    with ImageReader() as reader:
        files = [images.files[name] for name in rows["image_id"]]
        reading = _Reading(model.predictor, reader, files)
        found = predict_files(reading, paths, workers=workers, request=request)
        for _, answer in tqdm(found, images.source.name, len(rows), leave=False, disable=None):
            answers.append(answer)
    nothing = bytes(THUMBNAIL_SIDE**2)
    small = b"".join(reading.thumbnails.get(number, nothing) for number in range(len(rows)))
    return answers, np.frombuffer(small, np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def _excluded(
    images: _Images, known: _Known, thumbnails: Pixels, failed: list[bool]
) -> pd.DataFrame:
    """Say why images are left out: image_id, reason, training_image; an empty reason: they stay."""
    ids = images.rows["image_id"].tolist()
    copies = near_copies(thumbnails, known.thumbnails)
    same = [_id_of(image_id) in known.ids for image_id in ids]
    # Ids of lesions such as 1 are equal by chance, unless the data sets share images.
    lesions = known.lesions if any(same) else frozenset()
    of_lesion = images.rows.get("lesion_id", pd.Series(ids)).isin(lesions).tolist()
    reasons, originals = [], []
    for row, (image_id, copy) in enumerate(zip(ids, copies.tolist(), strict=True)):
        reason = _UNREADABLE if failed[row] else _SAME_IMAGE if copy >= 0 else ""
        reason = reason or (_SAME_ID if same[row] else _SAME_LESION if of_lesion[row] else "")
        reasons.append(reason)
        originals.append(known.names[copy] if copy >= 0 else image_id if same[row] else "")
    if reasons.count(_SAME_ID) > len(ids) / 2:
        logger.warning(
            f"{images.source.name}: more than half of the images have the id of a training image "
            "and were left out; if the ids are equal by chance, rename the files"
        )
    return pd.DataFrame({"image_id": ids, "reason": reasons, "training_image": originals})


def _answered(model: Model, images: _Images, known: _Known) -> Answered:
    """Let a model answer for the images of a source, all but those that it knows."""
    answers, thumbnails = _answers(model, images)
    excluded = _excluded(
        images, known, thumbnails, [isinstance(answer, ImageError) for answer in answers]
    )
    kept = (excluded["reason"] == "").to_numpy()
    counts = excluded["reason"][~kept].value_counts()
    reasons = images.excluded | {str(why): int(number) for why, number in counts.items()}
    rows = images.rows[kept].reset_index(drop=True)
    good = [answer for answer, stays in zip(answers, kept, strict=True) if stays]
    of_model = (rows["label"] != "").to_numpy(bool)
    if not of_model.any():
        listed = ", ".join(f"{number:,} {why}" for why, number in reasons.items())
        raise DataError(
            f"no image of {images.source.name} with a class of the model is left to evaluate "
            f"({listed}); name images that the model was not trained on"
        )
    said = [answer for answer in good if isinstance(answer, Prediction)]  # as all are
    rows["decision"] = [answer.decision or "" for answer in said]
    scored = _scored(rows[of_model], [said[i] for i in np.flatnonzero(of_model)], images.taxonomy)
    unchecked = known.unchecked
    if not images.has_lesions:
        scored = replace(scored, group_by="image")
        unchecked += (
            "No lesion ids: images are taken for independent, so intervals are too narrow if "
            "lesions have several images.",
        )
    return Answered(
        images=images,
        rows=rows,
        answers=said,
        scored=scored,
        excluded=excluded[~kept],
        reasons=reasons,
        unchecked=unchecked,
    )


def _evaluate(model: Model, asked: Asked, answered: Answered, folder: Path) -> Evaluation:
    """Evaluate a model on one source, and write it to a folder."""
    spec, taxonomy, images = model.predictor.spec, model.taxonomy, answered.images
    rows, said, scored = answered.rows, answered.answers, answered.scored
    name, unchecked = images.source.name, answered.unchecked
    limits, own = limits_of(spec), model.inside()
    outside = Side(scored=scored, limits=limits, trained=model.trained())
    inside = None if own is None else replace(outside, scored=own[1])
    replicates = asked.settings.replicates
    if own is None:
        unchecked += (
            "Not available: the drop, because the predictions for the model's own "
            "images are not at hand; pass --run-id, or the model file in the folder of "
            "its run.",
        )
    external = External(
        name=name,
        inside="" if own is None else own[0],
        probabilities=f"temperature {spec.temperature:.3f}, fitted on "
        f"{spec.calibrated_on or 'nothing'}",
        class_map=images.class_map,
        absent=tuple(n for i, n in enumerate(taxonomy.names) if i not in scored.targets),
        excluded=answered.reasons,
        unchecked=unchecked,
        drops=drops(inside, outside, replicates=replicates),
        at_prevalence=None
        if asked.prevalence == "none"
        else at_prevalence(asked.prevalence, inside, outside, replicates=replicates),
        decisions=()
        if spec.abstention is None
        else decisions_of(rows, images.class_map, replicates=replicates),
    )
    with ImageReader() as reader:

        def read_image(image_id: str) -> bytes:
            return reader.read(images.files[image_id])

        robustness = None
        if asked.corruptions:
            some_rows = choose_images(scored.targets)
            part = scored.take(some_rows)
            pixels = [model.predictor.pixels(read_image(n)) for n in part.table["image_id"]]
            facts = None if spec.metadata is None else facts_of(part.table, spec.metadata)
            robustness = robustness_of(model.predictor, np.stack(pixels), part, facts)
        predictions = Predictions(
            scored=scored,
            split=f"external/{name}",
            context={"run_id": spec.run_id, "data": name},
            limits=limits,
            external=external,
            robustness=robustness,
        )
        run = None if model.run is None else model.run.without_files()
        evaluation = write_evaluation(folder, predictions, run, asked.settings, read_image)
        of_others = np.flatnonzero(rows["label"] == "")
        unknown = _unknown_rows(rows.iloc[of_others], [said[i] for i in of_others])
        surest = [
            Mistake(
                image_id=rows["image_id"][i],
                true_label=rows["their_label"][i],
                predicted=said[i].predicted_class,
                confidence=said[i].confidence,
            )
            for i in sorted(of_others, key=lambda i: -said[i].confidence)
            if said[i].decision == "answer"
        ][:NUM_MISTAKES]
        write_mistakes(
            folder / "mistakes.html",
            evaluation,
            mistakes_of(predictions.answers, read_image, NUM_MISTAKES),
            [replace(one, picture=picture_of(one.image_id, read_image)) for one in surest],
        )
    write_predictions(folder / "excluded.csv", answered.excluded)
    write_predictions(folder / "unknown_classes.csv", unknown)
    return evaluation


def _scored(rows: pd.DataFrame, answers: Sequence[Prediction], taxonomy: Taxonomy) -> Scored:
    """Put answers beside the manifest rows that they are for."""
    measured = {"photo_problem": np.array([bool(answer.quality) for answer in answers], np.float32)}
    if answers[0].scope_score is not None:
        scores = [answer.scope_score for answer in answers]
        measured["scope_score"] = np.array(scores, np.float32)
    else:
        measured = {}
    manifest = rows.drop(columns=["their_label", "decision"])
    return scored_of(
        predictions_table(manifest, logits_of_answers(answers), taxonomy, measured), taxonomy
    )


def _unknown_rows(rows: pd.DataFrame, answers: Sequence[Prediction]) -> pd.DataFrame:
    """List the images of classes that the model lacks, with what it says of them."""
    return pd.DataFrame(
        {
            "image_id": rows["image_id"].tolist(),
            "label": rows["their_label"].tolist(),
            "predicted": [answer.predicted_class for answer in answers],
            "confidence": [answer.confidence for answer in answers],
            "decision": rows["decision"].tolist(),
            "scope_score": [answer.scope_score for answer in answers],
        }
    )
