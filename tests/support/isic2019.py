"""Drawn images in exactly the layout that ISIC 2019 is published in."""

import numpy as np
from PIL import Image

TRUTH_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
METADATA_HEADER = "image,age_approx,anatom_site_general,lesion_id,sex"
LESIONS = 10  # of each class
NO_CLASS = 8  # the column UNK
_SITES = ("anterior torso", "head/neck", "lower extremity", "oral/genital", "")


def draw_isic_2019(folder):
    """Write two images of each lesion, the second under a `_downsampled` id, and one of no class.

    Each class has a color; facts are missing here and there, as in the published tables.
    """
    inputs = folder / "ISIC_2019_Training_Input"
    inputs.mkdir(parents=True)
    (inputs / "LICENSE.txt").write_text("CC-BY-NC")
    rng = np.random.default_rng(0)
    truth, metadata = [TRUTH_HEADER], [METADATA_HEADER]
    targets = [*np.repeat(np.arange(NO_CLASS), 2 * LESIONS), NO_CLASS]
    for number, target in enumerate(targets):
        lesion = number // 2
        name = f"ISIC_{number:07d}" + ("_downsampled" if number % 2 else "")
        color = 60 + 130 * np.array([target & 1, target >> 1 & 1, target >> 2 & 1])
        pixels = color + rng.normal(0, 25, (40, 54, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(inputs / f"{name}.jpg")
        truth.append(f"{name}," + ",".join("1.0" if t == target else "0.0" for t in range(9)))
        age = "" if lesion % 7 == 0 else f"{30 + 5 * (lesion % 11)}.0"
        sex = ("female", "male", "")[lesion % 3]
        metadata.append(f"{name},{age},{_SITES[lesion % 5]},BCN_{lesion:07d},{sex}")
    (folder / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join([*truth, ""]))
    (folder / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([*metadata, ""]))
    return folder
