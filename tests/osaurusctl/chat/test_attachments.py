"""Files, images and formats of a prompt."""

import click
import pytest

from osaurusctl.chat.attachments import parse_format, user_message
from tests.images import PNG


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_fence_is_longer_than_those_in_the_file(file):
    message = user_message("Why?", [file("a.md", b"```\ncode\n```\n")])

    assert message["content"] == "a.md:\n````\n```\ncode\n```\n````\n\nWhy?"


def test_files_stay_in_order_and_a_byte_order_mark_is_removed(file):
    message = user_message("Compare.", [file("a", b"\xef\xbb\xbfone"), file("b", "zwölf".encode())])

    assert message["content"] == "a:\n```\none\n```\n\nb:\n```\nzwölf\n```\n\nCompare."


@pytest.mark.parametrize(
    ("name", "content", "hint"), [("a.bin", b"\xff\xfe", ""), ("a.bin", b"a\0b", ""), ("a", PNG, "--image")]
)
def test_binary_files_are_rejected(file, name, content, hint):
    with pytest.raises(click.UsageError, match=f"{name} is not a text file.*{hint}"):
        user_message("Why?", [file(name, content)])


def test_only_images_are_accepted_as_images(file):
    with pytest.raises(click.UsageError, match=r"a\.png is not a PNG, .* image; use --file"):
        user_message("Why?", [], [file("a.png", b"text")])


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", "is not valid JSON"), (b"[]", "must contain a JSON object"), (b"\xff", "not valid")]
)
def test_file_that_is_not_a_schema_is_rejected(file, content, reason):
    with pytest.raises(click.UsageError, match=reason):
        parse_format(str(file("schema.json", content)))


def test_unknown_format_is_rejected_with_the_choices():
    with pytest.raises(click.UsageError, match=r'cannot read yaml: .*; use "json" or the path of a JSON schema'):
        parse_format("yaml")
