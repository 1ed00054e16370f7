"""Paths of images in prompts, as terminals insert them."""

import click
import pytest
from PIL import Image

from osaurusctl.chat.images import image_part, image_type, parse_path, take_images
from tests.images import PNG, encode

NAMES = ("cat.png", "my cat.png", "it's (1).png", "Screenshot at 10.00\u202fAM.png", "zwölf & drei.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with images, which is also the home and the current one."""
    for name in NAMES:
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def escaped(path):
    return "".join(f"\\{char}" if char in " '()&" else char for char in str(path))


def quoted(path):
    return f'"{path}"'


def url(path):
    return path.as_uri()


def plain(path):
    return str(path)


@pytest.mark.parametrize("form", [escaped, quoted, url])
@pytest.mark.parametrize("name", NAMES)
def test_path_is_taken_out_of_the_prompt(folder, name, form):
    path = folder / name

    assert ("What is  here?", [path]) == take_images(f"What is {form(path)} here?")
    assert ("", [path]) == take_images(f"{form(path)} ")
    assert path == parse_path(form(path))


@pytest.mark.parametrize("name", NAMES)
def test_prompt_can_be_the_path_itself(folder, name):
    assert ("", [folder / name]) == take_images(plain(folder / name))


def test_several_images_are_taken_in_their_order(folder):
    first, second = folder / "cat.png", folder / "my cat.png"

    assert ("Compare  and", [second, first]) == take_images(f"Compare '{second}' and {first}")


@pytest.mark.parametrize("prompt", ["~/cat.png", "./cat.png", f"{'../'}x/../cat.png"])
def test_relative_path_is_recognized(folder, prompt):
    (folder / "x").mkdir()
    (folder / "y").mkdir()
    prompt = prompt.replace("../x/", "./x/")
    rest, (path,) = take_images(f"Look at {prompt}")

    assert ("Look at", PNG) == (rest, path.read_bytes())


@pytest.mark.parametrize(
    "prompt",
    [
        "What is cat.png?",
        "/etc/hosts is a file",
        "{folder}/notes.txt",
        "{folder}/missing.png",
        "{folder}",
        "see {folder}/cat.png.",
        "'{folder}/cat.png",
        "file://",
        "/" + "x" * 5000,
        "/bad\0name",
    ],
)
def test_other_text_stays_in_the_prompt(folder, prompt):
    prompt = prompt.replace("{folder}", str(folder))

    assert (prompt, []) == take_images(prompt)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP"])
def test_type_follows_from_the_content(format_):
    assert f"image/{format_.lower()}" == image_type(encode(Image.new("RGB", (2, 2)), format_))


@pytest.mark.parametrize("data", [b"", b"GIF", b"RIFF", b"%PDF-1.7"])
def test_other_content_has_no_image_type(data):
    assert image_type(data) is None


def test_empty_file_is_named(tmp_path):
    (tmp_path / "cat.png").touch()

    with pytest.raises(click.UsageError, match=r"cat\.png is empty"):
        image_part(tmp_path / "cat.png")
