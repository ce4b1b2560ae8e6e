"""Numbers in YAML are read as numbers, and quoted strings that look like numbers stay strings."""

import pytest
import yaml

from curation.yaml_text import dump_yaml, load_yaml


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "1.e-5", ".1e-4", "+1e-5", "10e-6", "0.00001", "1.0e-05"])
def test_a_small_number_is_a_number_however_it_is_written(text):
    value = load_yaml(f"rate: {text}")["rate"]
    assert isinstance(value, float)
    assert value == pytest.approx(1e-5, rel=1e-12)


@pytest.mark.parametrize(("text", "value"), [("-1e3", -1000.0), ("1e+2", 100.0), ("3", 3), ("-0.5", -0.5), ("1e5", 1e5)])
def test_other_numbers(text, value):
    read = load_yaml(f"[{text}]")[0]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("text", ["1e", "e5", "1e5x", "1e-5-2", "1 e5", "0x1e5z", "1e5.0", "--1e5", "v1e5"])
def test_what_only_resembles_a_number_is_a_text(text):
    assert load_yaml(f"a: {text}")["a"] == text


@pytest.mark.parametrize("text", ["1e-5", "12e45678", "1.0e-5", "3", "yes", "null", "a: b", "größe", ""])
def test_a_text_comes_back_as_a_text(text):
    assert load_yaml(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.parametrize("value", [1e-5, 1e-300, 2.5e20, 0.1, 5, -3e-7])
def test_a_number_comes_back_as_it_was_from_our_reader_and_pyyamls_own(value):
    assert load_yaml(dump_yaml({"a": value})) == yaml.safe_load(dump_yaml({"a": value})) == {"a": value}


def test_an_object_is_not_built():
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
