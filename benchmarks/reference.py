"""A finished training -> the reference model: the last step of `make reference`.

    python -m benchmarks.reference FOLDER

FOLDER is that of `dermalyze train --no-tracking`.  Writes into dermalyze/reference the ONNX file
with float16 weights, the settings of its network, cards and checksums, and beside the tests what
the file answers on drawn images.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from dermalyze.export.parity_images import parity_images
from dermalyze.models.checkpoint import load_checkpoint
from dermalyze.models.reference import NETWORK
from dermalyze.workflows.export import export_checkpoint
from dermalyze.workflows.report import DATA_CARD, MODEL_CARD
from dermalyze.workflows.run_context import BEST, EVALUATION
from serving.atomic_write import write_text
from serving.predictor import Predictor
from serving.reference import REFERENCE

ANSWERS = Path("tests/support/reference_answers.json")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    REFERENCE.parent.mkdir(exist_ok=True)
    print(export_checkpoint(folder / BEST, REFERENCE, tta=False, precision="float16"))
    values = json.loads(load_checkpoint(folder / BEST)["model"])
    settings = values | {"pretrained": False, "plugins": []}
    write_text(NETWORK, json.dumps(settings, indent=1) + "\n")
    for card in (MODEL_CARD, DATA_CARD):
        shutil.copyfile(folder / EVALUATION / card, REFERENCE.with_name(card))
    predictor = Predictor()
    answers = {name: predictor.predict(image).probabilities for name, image in parity_images()}
    write_text(ANSWERS, json.dumps(answers, indent=1) + "\n")
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in (REFERENCE, NETWORK)
    ]
    write_text(REFERENCE.with_name("SHA256SUMS"), "".join(sums))
    print("".join(sums), end="")


if __name__ == "__main__":
    main()
