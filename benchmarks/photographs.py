"""Validation pictures as a phone would send them: how many change their class?

Each is enlarged three times and encoded as JPEG of quality 60 and 95.  A model of small pictures
should not mind.

    python -m benchmarks.photographs FOLDER --data-dir DIR [--images N]

FOLDER is that of `dermalyze train --no-tracking`.
"""

import argparse
import csv
import io
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.report import Figure, publish
from dermalyze.data.corruptions import saved
from dermalyze.data.readers.dataset import ImageReader, open_dataset
from serving.predictor import Predictor

QUALITIES = (60, 95)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--data-dir", type=Path, required=True)
    options.add_argument("--images", type=int, default=None, help="at most")
    chosen = options.parse_args()
    with (chosen.folder / "val_split.csv").open(newline="") as file:
        names = [row["image_id"] for row in csv.DictReader(file)][: chosen.images]
    files = open_dataset(chosen.data_dir).files
    predictor = Predictor(chosen.folder / "model.onnx")
    changed = dict.fromkeys(QUALITIES, 0)
    with ImageReader() as reader:
        for name in names:
            image = Image.open(io.BytesIO(reader.read(files[name]))).convert("RGB")
            large = ImageOps.scale(image, 3, Image.Resampling.BICUBIC)
            sent = [image, *(saved(large, quality) for quality in QUALITIES)]
            small, *others = [answer.predicted_class for answer in predictor.predict_batch(sent)]
            for quality, other in zip(QUALITIES, others, strict=True):
                changed[quality] += other != small
    figures = [
        Figure(
            what=f"class changed, enlarged 3 times, JPEG {quality}",
            ours=number,
            baseline=len(names),
            unit="images",
            against="all of validation",
            ratio=number / len(names),
            goal="<= 0.05",
        )
        for quality, number in changed.items()
    ]
    publish("photographs", figures, folder=str(chosen.folder))


if __name__ == "__main__":
    main()
