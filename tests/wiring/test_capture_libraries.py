"""Values of NumPy, pandas and pydantic become nodes as what they are, without running their code."""

import numpy
import pandas
import pydantic
import pytest

from tests.support import hostile
from tests.support.encoded import Encoded, cpu_of

HIDDEN = "xK4-perf-Zq77"


class Model(pydantic.BaseModel):
    id: int
    key: pydantic.SecretStr


@pytest.mark.parametrize(("value", "text"), [(numpy.float64(1.5), "float64('1.5')"), (numpy.int64(3), "3")])
def test_a_number_of_numpy_reads_as_what_it_is(value, text):
    assert Encoded(value).text == text


def test_a_model_of_pydantic_shows_its_fields_and_hides_its_secret():
    model = Encoded(Model(id=3, key="topsecret"))
    assert model.node.form == "pydantic"
    assert model.field("id").value == 3
    assert model.field("key").kind == "redacted"
    assert b"topsecret" not in model.data


def test_a_matrix_says_its_shape():
    matrix = Encoded(numpy.arange(100_000).reshape(100, 1000))
    assert (matrix.node.form, matrix.node.length, matrix.node.cut) == ("ndarray", 100_000, 99_950)
    assert "int64 (100, 1000)" in matrix.node.note


def test_objects_of_pandas_are_said_to_be_such():
    frame = Encoded(pandas.DataFrame({"id": [1, 2], "name": ["a", "b"], "when": pandas.to_datetime(["2024"] * 2)}))
    assert frame.node.form == "dataframe"
    assert frame.node.note == "2 rows × 3 columns"
    assert Encoded(pandas.Series([1.5, 2.5])).node.form == "series"
    assert Encoded(pandas.Index([1, 2])).node.form == "index"


def test_an_object_array_shows_its_objects_without_asking_them():
    objects = numpy.empty(2, dtype=object)
    objects[0] = hostile.hostile()()
    with hostile.watched():
        encoded = Encoded(objects)
    assert encoded.node.length == 2


def test_an_array_of_a_hundred_megabytes_takes_under_20_ms():
    value = numpy.zeros(12_500_000)
    Encoded("warm")
    best_s = min(cpu_of(lambda: Encoded(value)) for _ in range(3))
    encoded = Encoded(value)
    assert encoded.node.cut > 0
    assert encoded.node.length > 900_000
    assert len(encoded.data) < 20_000
    assert best_s < 0.02


def test_a_secret_in_a_model_is_known_in_every_other_text():
    held = pydantic.SecretStr(HIDDEN)
    assert HIDDEN.encode() not in Encoded({"password": held, "message": f"no login with {HIDDEN}"}).data
