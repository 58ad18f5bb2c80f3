"""Bodies that cost much to read, each within the default bounds: name -> (content type, body)."""

import json

from strangers import ONE

SIZE = 8 * 2**20  # the default bound of a body
JSON, CSV, FORM = "application/json", "text/csv", "multipart/form-data; boundary=b"


def filled(start, unit, end):
    """Repeat `unit` until the body is as large as it may be."""
    return start + unit * ((SIZE - len(start) - len(end)) // len(unit)) + end


def hostile():
    image = ONE.encode()
    keys = ",".join(f'"k{i}":0' for i in range(500_000))
    wide = ",".join(f'"k{i}"' for i in range(60_000))
    records = [{f"k{i}-{j}": 0 for j in range(3000)} for i in range(32)]
    part = b'--b\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n'
    return {
        "20,000 records of other keys": (
            JSON,
            json.dumps({"dataframe_records": [{f"k{i}": 0} for i in range(20_000)]}).encode(),
        ),
        "a million records of other keys": (
            JSON,
            filled(b'{"dataframe_records":[{"k":0}', b',{"k":0}', b"]}"),
        ),
        "32 records of 3,000 keys": (JSON, json.dumps({"dataframe_records": records}).encode()),
        "numbers": (JSON, filled(b'{"inputs":[0', b",0", b"]}")),
        "lists": (JSON, filled(b'{"inputs":[[]', b",[]", b"]}")),
        "objects": (JSON, filled(b'{"instances":[{}', b",{}", b"]}")),
        "texts": (JSON, filled(b'{"inputs":[""', b',""', b"]}")),
        "columns of one image": (JSON, f'{{"inputs":{{"image":"{ONE}",{keys}}}}}'.encode()),
        "rows of a split": (
            JSON,
            filled(b'{"dataframe_split":{"columns":["image","x"],"data":[[0,0]', b",[0,0]", b"]}}"),
        ),
        "columns of a split": (
            JSON,
            f'{{"dataframe_split":{{"columns":[{wide}],"data":[[{wide}]]}}}}'.encode(),
        ),
        "cells of one row": (JSON, filled(b'{"inputs":{"image":[[0', b",0", b"]]}}")),
        "nesting": (JSON, filled(b'{"inputs":', b"[", b"")),
        "nesting of objects": (JSON, filled(b'{"inputs":', b'{"":', b"")),
        "whole numbers of 4,000 digits": (JSON, filled(b'{"inputs":[0', b"," + b"9" * 4000, b"]}")),
        "a whole number of 8 million digits": (JSON, filled(b'{"inputs":[', b"9", b"]}")),
        "a fraction of 8 million digits": (JSON, filled(b'{"inputs":[0.', b"9", b"]}")),
        "an age that is nearly a number": (
            JSON,
            filled(b'{"inputs":{"image":["' + image + b'"],"age":["', b"9", b'x"]}}'),
        ),
        "spaces in base64": (JSON, filled(b'{"inputs":["', b"A ", b'"]}')),
        "escapes": (JSON, filled(b'{"inputs":["', b"\\u0041", b'"]}')),
        "a name of 8 million letters": (
            JSON,
            filled(b'{"inputs":["' + image + b'"],"', b"a", b'":0}'),
        ),
        "a column of 8 million letters": (
            JSON,
            filled(b'{"inputs":{"image":["no image"],"', b"ag ", b'":[0]}}'),
        ),
        "CSV of commas": (CSV, filled(b"image\n", b",", b"")),
        "CSV of columns": (CSV, filled(b"image", b",a", b"\n")),
        "CSV of lines": (CSV, filled(b"image\n", b"\n", b"")),
        "CSV of rows": (CSV, filled(b"image,x\n", b"a,b\n", b"")),
        "CSV of returns": (CSV, filled(b"image", b"\r", b"")),
        "CSV of quotes": (CSV, filled(b"image\n", b'"', b"")),
        "CSV of one cell": (CSV, filled(b'image\n"', b"A\t", b'"\n')),
        "a form of parts": (FORM, filled(b"", part + b"\r\nx\r\n", b"--b--\r\n")),
        "a form of headers": (FORM, filled(part, b"a:b\r\n", b"\r\n\r\n--b--\r\n")),
        "a form of nearly boundaries": (FORM, filled(part + b"\r\n", b"\r\n--", b"\r\n--b--\r\n")),
        "a form of returns": (FORM, filled(part + b"\r\n", b"\r", b"\r\n--b--\r\n")),
        "a preamble": (FORM, filled(b"", b"\r\n-", b"--b--\r\n")),
    }
