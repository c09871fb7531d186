"""What recipes rely on in PyYAML."""

from __future__ import annotations

import pytest
import yaml


def test_a_key_that_is_there_twice_is_taken_from_its_last_place_without_a_word() -> None:
    assert yaml.safe_load("a: 1\na: 2\n") == {"a": 2}
    node = yaml.SafeLoader("a: 1\na: 2\n").get_single_node()
    assert isinstance(node, yaml.MappingNode)
    assert [(key.value, key.start_mark.line) for key, _ in node.value] == [("a", 0), ("a", 1)]


def test_a_merge_is_a_key_of_its_own_tag_until_the_document_is_made() -> None:
    loader = yaml.SafeLoader("a: &a {b: 1}\nc: {<<: *a, d: 2}\n")
    node = loader.get_single_node()
    assert isinstance(node, yaml.MappingNode)
    inner = node.value[1][1]
    assert [key.tag.rpartition(":")[2] for key, _ in inner.value] == ["merge", "str"]
    assert loader.construct_document(node)["c"] == {"b": 1, "d": 2}


def test_plain_words_are_read_as_yaml_1_1_reads_them() -> None:
    text = "[no, 1e-3, 1.0e-3, 20%, 1_000, 2024-01-01]"
    no, exponent, dotted, share, thousand, date = yaml.safe_load(text)
    assert (no, exponent, dotted, share, thousand) == (False, "1e-3", 0.001, "20%", 1000)
    assert type(date).__name__ == "date"


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['x']", "!!python/name:os.system", "!own {a: 1}"])
def test_the_safe_loader_makes_no_objects(text: str) -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
        yaml.safe_load(text)


def test_text_that_looks_like_something_else_is_written_with_quotes() -> None:
    told = {"a": "no", "b": "1.10", "c": "a: b", "d": "2024-01-01", "e": "\ud800", "f": "# x", "g": "ü\n"}
    assert yaml.safe_load(yaml.safe_dump(told, allow_unicode=True, width=1000)) == told
