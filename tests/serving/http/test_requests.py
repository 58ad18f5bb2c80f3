"""What is asked beside the images, whichever way it comes: used or refused, never passed over."""

import base64
import io
import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from strangers import ONE, png, text
from tiny_model import TINY_ONNX

from serving import Predictor
from serving.errors import ImageError
from serving.http.app import create_app
from serving.http.requests import Item, Params, answers_for, decode_base64
from serving.http.settings import ServiceSettings
from serving.metadata import Metadata

PNG = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}
CSV = {"content-type": "text/csv"}
FACTS = {"age": "80", "sex": "male", "localization": "back"}
NAMES = "level, sensitivity, explain, one_lesion, age, sex, localization"


@pytest.fixture(scope="module")
def client(rich):
    with TestClient(create_app(ServiceSettings(model=str(rich), threads=1))) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(rich):
    return Predictor(rich)


def by_query(client, values, path="/predict"):
    return client.post(path, params=values, content=png(), headers=PNG)


def by_form(client, values, path="/predict"):
    fields = [(name, (None, str(value))) for name, value in values.items()]
    return client.post(path, files=[*fields, ("p", ("p.png", png()))])


def by_record(client, values):
    request = json.dumps({"dataframe_records": [{"image": text(png()), **values}]})
    return client.post("/invocations", content=request, headers=JSON)


def by_split(client, values):
    split = {"columns": ["image", *values], "data": [[text(png()), *values.values()]]}
    return client.post("/invocations", content=json.dumps({"dataframe_split": split}), headers=JSON)


def by_columns(client, values):
    columns = {"image": [text(png())], **{name: [value] for name, value in values.items()}}
    return client.post("/invocations", content=json.dumps({"inputs": columns}), headers=JSON)


def by_csv(client, values):
    cells = ",".join(map(str, values.values()))
    content = f"image,{','.join(values)}\n{text(png())},{cells}\n"
    return client.post("/invocations", content=content, headers=CSV)


def by_params(client, values):
    return client.post("/invocations", json={"inputs": [text(png())], "params": values})


TABLES = [by_record, by_split, by_columns, by_csv]


@pytest.mark.parametrize("way", [by_query, by_form, *TABLES])
def test_what_is_known_of_a_patient_reaches_the_model(client, predictor, way):
    expected = predictor.predict(png(), metadata=Metadata.of(FACTS)).to_dict()
    assert expected != predictor.predict(png()).to_dict()
    assert way(client, FACTS).json() == {"predictions": [expected]}


@pytest.mark.parametrize("way", [by_query, by_form, by_params])
def test_a_level_and_a_map_reach_the_model(client, predictor, way):
    typed = {"level": 0.95, "explain": True} if way is by_params else None
    (answer,) = way(client, typed or {"level": "0.95", "explain": "true"}).json()["predictions"]
    assert answer["set_level"] == predictor.predict(png(), level=0.95).set_level
    assert "saliency" in answer


@pytest.mark.parametrize("way", [by_query, by_form, by_params])
def test_a_sensitivity_reaches_the_model(client, predictor, way):
    typed = 0.8 if way is by_params else "0.8"
    (answer,) = way(client, {"sensitivity": typed}).json()["predictions"]
    expected = predictor.predict(png(), sensitivity=0.8).to_dict()
    assert answer == expected
    assert expected["referral_level"] == 0.8 != predictor.predict(png()).referral_level


def test_a_sensitivity_that_no_model_has_is_refused(client):
    response = by_query(client, {"sensitivity": "0.5"})
    assert (response.status_code, response.json()["message"]) == (
        422,
        "image 1 of 1: the sensitivity of the referral must be from 0.8 to 0.99, got 0.5",
    )
    response = by_query(client, {"sensitivity": "high"})
    assert response.json()["message"] == "sensitivity must be a number, such as 0.95"


def test_the_document_describes_the_sensitivity(client):
    document = client.get("/openapi.json").json()
    post = document["paths"]["/predict"]["post"]
    (described,) = [found for found in post["parameters"] if found["name"] == "sensitivity"]
    assert described["schema"] == {"type": "number", "default": 0.95}
    forms = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert forms["sensitivity"]["type"] == "number"
    answer = post["responses"]["200"]["content"]["application/json"]["example"]["predictions"][0]
    assert answer["referral_level"] == 0.95
    assert client.get("/version").json()["sensitivities"] == [0.8, 0.9, 0.95]


@pytest.mark.parametrize("way", [by_query, by_form])
def test_a_picture_is_drawn_of_the_class_that_is_named(client, way):
    named = way(client, {"class_name": "mel", "age": "30"}, "/explain").content
    other = way(client, {"class_name": "df", "age": "30"}, "/explain").content
    assert named[:4] == other[:4] == b"\x89PNG"
    assert named != other


@pytest.mark.parametrize("way", [by_query, by_form])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("leve", "; did you mean level?"),
        ("Level", "; did you mean level?"),
        ("Age", "; did you mean age?"),
        (" age", "; did you mean age?"),
        ("one-lesion", "; did you mean one_lesion?"),
        ("threshold", ""),
        ("", ""),
        ("a" * 3000, ""),
    ],
)
def test_an_unknown_name_beside_a_photograph_is_refused_with_the_one_it_looks_like(
    client, way, name, hint
):
    response = way(client, {name: "1"})
    assert (response.status_code, response.json()["message"]) == (
        400,
        f"unknown name in the query or the form: expected any of {NAMES}{hint}",
    )


def test_an_unknown_name_is_refused_where_a_map_is_drawn(client):
    response = by_query(client, {"level": "0.9"}, "/explain")
    assert (response.status_code, response.json()["message"]) == (
        400,
        "unknown name in the query or the form: expected any of class_name, age, sex, localization",
    )


@pytest.mark.parametrize(
    ("name", "hint"), [("leve", "; did you mean level?"), ("threshold", ""), ("age", "")]
)
def test_an_unknown_param_is_refused(client, name, hint):
    response = by_params(client, {name: 0.9})
    assert (response.status_code, response.json()["message"]) == (
        400,
        f"unknown name in params: expected any of level, sensitivity, explain, one_lesion{hint}",
    )


@pytest.mark.parametrize("way", TABLES)
@pytest.mark.parametrize(
    ("name", "meant"),
    [("Age", "age"), ("patientAge", "age"), ("gender", "sex"), ("localisation", "localization")],
)
def test_a_column_that_looks_like_ours_is_refused(client, way, name, meant):
    response = way(client, {name: "1"})
    assert (response.status_code, response.json()["message"]) == (
        400,
        f"a column would be ignored: rename it if it means {meant}",
    )


@pytest.mark.parametrize("way", TABLES)
@pytest.mark.parametrize("name", ["level", "Explain", "oneLesion", "params"])
def test_a_param_in_a_column_is_refused(client, way, name):
    response = way(client, {name: "1"})
    assert (response.status_code, response.json()["message"]) == (
        400,
        'a column would be ignored: send params next to the images, as "params": '
        '{"level": 0.95}, or rename it',
    )


@pytest.mark.parametrize("way", TABLES)
def test_columns_of_the_sender_are_left_alone(client, predictor, way):
    answer = way(client, {"id": "7", "image_id": "ISIC_1", "stage": "2", "note": "x" * 100})
    assert answer.json() == {"predictions": [predictor.predict(png()).to_dict()]}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            {"inputs": [ONE], "level": 0.95},
            "unknown name in the request: expected any of inputs, params",
        ),
        (
            {"inputs": [ONE], "Params": {"level": 0.95}},
            "unknown name in the request: expected any of inputs, params; did you mean params?",
        ),
        (
            {"dataframe_split": {"columns": ["image"], "data": [[ONE]], "age": [80]}},
            "unknown name in dataframe_split: expected any of columns, index, data",
        ),
    ],
)
def test_a_name_beside_the_images_of_a_request_is_refused(client, request_, sentence):
    response = client.post("/invocations", json=request_)
    assert (response.status_code, response.json()["message"]) == (400, sentence)


def test_a_query_of_invocations_is_refused(client):
    response = client.post("/invocations?level=0.95", json={"inputs": [ONE]})
    assert (response.status_code, response.json()["message"]) == (
        400,
        "this path takes no query; send params in the JSON",
    )


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (
            b'{"inputs": ["x"], "inputs": ["y"]}',
            "application/json",
            "an object of the request has one name twice; send each once",
        ),
        (
            b'{"inputs": ["x"], "params": {"level": 0.8, "level": 0.9}}',
            "application/json",
            "an object of the request has one name twice; send each once",
        ),
        (
            b'{"dataframe_split": {"columns": ["image", "age", "age"], "data": [["x", 1, 2]]}}',
            "application/json",
            "the request has one column twice; send each once",
        ),
        (b"image,image\nx,y\n", "text/csv", "the request has one column twice; send each once"),
    ],
)
def test_what_is_said_twice_is_refused(client, content, kind, sentence):
    response = client.post("/invocations", content=content, headers={"content-type": kind})
    assert (response.status_code, response.json()["message"]) == (400, sentence)


def test_a_value_that_comes_twice_beside_a_photograph_is_refused(client):
    sentence = "a name is given twice in the query or the form; send each once"
    twice = client.post("/predict?age=50&age=60", content=png(), headers=PNG)
    both = by_form(client, {"age": "50"}, "/predict?age=60")
    form = client.post("/predict", files=[("age", (None, "50")), ("age", (None, "60"))])
    assert twice.json()["message"] == both.json()["message"] == sentence
    assert form.json()["message"] == "the form holds one field twice; send each once"


HUGE = (
    "1" + "0" * 400,
    "-" + "9" * 400,
    "9" * 4000,
    "1e999",
    "-1e999",
    "1" * 4000 + "x",
    "Infinity",
)


@pytest.mark.parametrize("number", HUGE, ids=lambda number: number[:5] + str(len(number)))
def test_a_number_of_any_size_is_refused_like_another_that_cannot_be(client, number):
    age = "image 1 of 1: an age must be a number of years from 0 to 120"
    level = "the parameter level must be a number, such as 0.95"
    is_json = not number.endswith("x")
    requests = [(f'{{"inputs": {{"image": ["{ONE}"], "age": ["{number}"]}}}}', JSON, age)]
    requests += [(f"image,age\n{ONE},{number}\n", CSV, age)]
    if is_json:
        requests += [
            (f'{{"inputs": {{"image": ["{ONE}"], "age": [{number}]}}}}', JSON, age),
            (f'{{"inputs": ["{ONE}"], "params": {{"level": {number}}}}}', JSON, level),
        ]
    for content, headers, sentence in requests:
        response = client.post("/invocations", content=content, headers=headers)
        assert (response.status_code, response.json()["message"]) == (400, sentence)
    for way in (by_query, by_form):
        response = way(client, {"age": number})
        assert (response.status_code, response.json()["message"]) == (422, age)
        response = way(client, {"level": number})
        assert (response.status_code, response.json()["message"]) == (
            422,
            "level must be a number, such as 0.95",
        )


@pytest.mark.parametrize("value", [True, "true", [50], {"a": 1}, "fifty", -1, 120.5])
def test_an_age_that_is_none_is_refused(client, value):
    response = by_record(client, {"age": value})
    assert (response.status_code, response.json()["message"]) == (
        400,
        "image 1 of 1: an age must be a number of years from 0 to 120",
    )


@pytest.mark.parametrize("value", [True, "0.9", None, [0.9], float("nan")])
def test_a_level_that_is_none_is_refused(client, value):
    content = json.dumps({"inputs": [ONE], "params": {"level": value}})
    response = client.post("/invocations", content=content, headers=JSON)
    assert (response.status_code, response.json()["message"]) == (
        400,
        "the parameter level must be a number, such as 0.95",
    )


def test_no_age_and_minus_nothing_are_ages(client, predictor):
    for value, expected in ((-0.0, 0), (0, 0), (float("nan"), None), (None, None)):
        content = json.dumps({"inputs": {"image": [text(png())], "age": [value]}})
        answer = client.post("/invocations", content=content, headers=JSON).json()
        metadata = Metadata(age=expected)
        assert answer == {"predictions": [predictor.predict(png(), metadata=metadata).to_dict()]}


def test_photographs_of_one_lesion_share_what_is_known(predictor):
    def asked(*facts):
        items = [Item(png(i), fact) for i, fact in enumerate(facts)]
        return answers_for(predictor, items, Params(one_lesion=True))

    images, known = [png(0), png(1)], Metadata(age=80)
    expected = [predictor.predict_lesion(images, metadata=known).to_dict()]
    assert asked({"age": 80}, {"age": "80"}) == expected
    assert asked({"age": 80}, {"age": None}) == asked({"age": ""}, {"age": 80}) == expected
    with pytest.raises(Exception, match="have differing metadata; send the same with each"):
        asked({"age": 80}, {"age": 50})


def jpeg():
    data = io.BytesIO()
    Image.radial_gradient("L").resize((30, 20)).convert("RGB").save(data, "JPEG")
    return data.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpeg",
        "image/jpg",
        "IMAGE/JPG; q=1",
        "image/pjpeg",
        "Image/PJPEG;name=a.jpg",
        "image/png",
        "image/x-png",
        'image/X-PNG; name="a;b.png"; charset=binary',
    ],
)
def test_a_photograph_is_known_by_every_name_of_its_type(client, predictor, kind):
    response = client.post("/predict", content=jpeg(), headers={"content-type": kind})
    assert response.json() == {"predictions": [predictor.predict(jpeg()).to_dict()]}


def test_base64_may_come_as_a_data_uri_or_wrapped():
    encoded = base64.encodebytes(png()).decode()
    for start in ("", "data:image/png;base64,", "data:;base64,", " DATA:image/PNG;Base64 ,"):
        cell = start + encoded
        assert decode_base64(cell) == png()
    for cell, sentence in (
        ("data:image/png,abc", "a data: URI must hold base64, as data:image/jpeg;base64,... does"),
        (
            "data:image/png;base64",
            "a data: URI must hold base64, as data:image/jpeg;base64,... does",
        ),
        ("data:image/png;base64,*", "its text is not base64"),
        ("\xa0" + encoded, "its text is not base64"),
    ):
        with pytest.raises(ImageError) as caught:
            decode_base64(cell)
        assert str(caught.value) == sentence


def test_any_number_of_images_is_answered_outside_a_server():
    predictor = Predictor(TINY_ONNX)
    items = [Item(png(i % 3), {}) for i in range(100)]
    answers = answers_for(predictor, items, Params(), max_images=None)
    assert answers == [predictor.predict(png(i % 3)).to_dict() for i in range(100)]
