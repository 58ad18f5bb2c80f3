"""Images and requests as strangers send them."""

import base64
import io
import json
import zlib

import numpy as np
from PIL import Image


def png(seed=0, size=(20, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def header_of_a_large_png(width, height):
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def text(data):
    return base64.b64encode(data).decode("ascii")


HOW = 'expected Content-Type: application/json and {"dataframe_records": [{"image": "<base64>"}]}'


ONE, TWO = text(png(1)), text(png(2))
GOOD_REQUESTS = {
    "split": {"dataframe_split": {"columns": ["image"], "data": [[ONE], [TWO]]}},
    "records": {"dataframe_records": [{"image": ONE}, {"image": TWO}]},
    "records with more columns": {
        "dataframe_records": [{"image": ONE, "id": 1}, {"image": TWO, "id": 2}]
    },
    "inputs list": {"inputs": [ONE, TWO]},
    "inputs columns": {"inputs": {"image": [ONE, TWO]}},
    "inputs records": {"inputs": [{"image": ONE}, {"image": TWO}]},
    "instances list": {"instances": [ONE, TWO]},
    "instances columns": {"instances": {"image": [ONE, TWO]}},
    "instances records": {"instances": [{"image": ONE}, {"image": TWO}]},
}
ONE_IMAGE = {
    "split": {"dataframe_split": {"columns": ["image"], "data": [[ONE]]}},
    "records": {"dataframe_records": [{"image": ONE}]},
    "inputs list": {"inputs": [ONE]},
    "inputs column": {"inputs": {"image": ONE}},
    "inputs record": {"inputs": [{"image": ONE}]},
    "instances list": {"instances": [ONE]},
    "instances record": {"instances": [{"image": ONE}]},
    "wrapped as the base64 program does": {"inputs": [ONE[:76] + "\n" + ONE[76:] + "\n"]},
}
BAD_REQUESTS = {
    "no base64": ({"inputs": ["SECR-ETAA!"]}, "image 1 of 1: its text is not base64"),
    "no image": (
        {"inputs": [text(b"SECRET")]},
        "image 1 of 1: not a JPEG or PNG image (6 bytes)",
    ),
    "second is bad": (
        {"dataframe_records": [{"image": ONE}, {"image": text(png()[:200])}]},
        "image 2 of 2: cannot decode the image (200 bytes): it is damaged or cut short",
    ),
    "41 megapixels": (
        {"instances": [text(header_of_a_large_png(8200, 5000))]},
        "image 1 of 1: the image is 8200 x 5000; the limit is 40,000,000 pixels",
    ),
    "empty text": ({"inputs": [""]}, "image 1 of 1: not a JPEG or PNG image (0 bytes)"),
    "a number": (
        {"dataframe_records": [{"image": 5}]},
        "image 1 of 1: expected base64 text, got another type",
    ),
    "null": (
        {"dataframe_records": [{"image": None}]},
        "image 1 of 1: expected base64 text, got another type",
    ),
    "a column in another case": (
        {"dataframe_records": [{"image": ONE, "Age": 50}]},
        "a column would be ignored: rename it if it means age",
    ),
    "an unknown param": (
        {"inputs": [ONE], "params": {"leve": 0.9}},
        "unknown name in params: expected any of level, sensitivity, explain, one_lesion; did you "
        "mean level?",
    ),
    "metadata for a model without": (
        {"dataframe_records": [{"image": ONE, "age": 50}]},
        "image 1 of 1: this model takes no metadata, only images; leave age, sex and localization "
        "out",
    ),
    "a number of any size": (
        {"dataframe_records": [{"image": ONE, "age": 10**400}]},
        "image 1 of 1: an age must be a number of years from 0 to 120",
    ),
    "many columns": (
        {"dataframe_records": [{f"k{i}": 0} for i in range(20_000)]},
        "a request holds from 1 to 32 images, got 20000",
    ),
    "other column": ({"dataframe_records": [{"SECRET": ONE}]}, f"no column image; {HOW}"),
    "no column names": ({"dataframe_split": {"data": [[ONE]]}}, f"no column image; {HOW}"),
    "no row": ({"dataframe_records": []}, f"no column image; {HOW}"),
    "empty list": ({"inputs": []}, "a request holds from 1 to 32 images, got 0"),
    "too many": ({"inputs": [ONE] * 33}, "a request holds from 1 to 32 images, got 33"),
    "no map": (
        {"inputs": [ONE], "params": {"explain": True}},
        "image 1 of 1: this model has no map; export the run again with this version of dermalyze",
    ),
    "too long": (
        {"inputs": ["A" * 14_000_001]},
        "image 1 of 1: its base64 has 14,000,001 characters; the limit is 14,000,000",
    ),
}
OVER_HTTP_ALONE = (  # what MLflow takes away before the model sees it, or a program may ask
    "a column in another case",
    "an unknown param",
    "metadata for a model without",
    "a number of any size",
    "many columns",
    "too many",
    "empty list",
)
UNREADABLE = {  # body, content type
    "no content type": (json.dumps({"inputs": [ONE]}).encode(), None),
    "no JSON": (b'{"inputs": ["SECRET"', "application/json"),
    "no UTF-8": (b"\xff\xfeSECRET", "application/json"),
    "deeply nested": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "application/json"),
    "no known key": (b'{"image": "SECRET"}', "application/json"),
    "two keys": (b'{"inputs": ["SECRET"], "instances": ["SECRET"]}', "application/json"),
    "a list": (b'["SECRET"]', "application/json"),
    "ragged columns": (b'{"inputs": {"image": ["SECRET"], "x": ["a", "b"]}}', "application/json"),
    "ragged rows": (
        b'{"dataframe_split": {"columns": ["image"], "data": [["SECRET", 1]]}}',
        "application/json",
    ),
    "empty CSV": (b"", "text/csv"),
    "no Parquet": (b"SECRET", "application/vnd.apache.parquet"),
}
