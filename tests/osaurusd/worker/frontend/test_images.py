"""Image files: formats, orientation, transparency, depth, limits and damage."""

import base64
import importlib.util

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from osaurusd.errors import InvalidRequest
from osaurusd.worker.frontend import images
from tests.images import BAD_IMAGES, BLUE, PNG, RED, drawing, encode, png_bomb, with_size

LOCATION = ("images", 3)
MAX_PIXELS = 10_000_000

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoQABAAAAAAAAAEIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA"
    "AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA"
    "AAAoY2xhcAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAE"
    "ptZGF0AAAAPigBrwng47+cVP/66za/2Vj/+THJVAg8aGT/KfW/jtUG+MKHEqIIIy8fvWFywV2AIS/nOdxb6NYKNANjqXxw"
)


def decode(data, max_pixels=MAX_PIXELS):
    return images.decode_image(data, max_pixels=max_pixels, location=LOCATION)


def rejection(data, max_pixels=MAX_PIXELS):
    """Return the message of the error."""
    with pytest.raises(InvalidRequest) as raised:
        decode(data, max_pixels)
    assert LOCATION == raised.value.location
    return raised.value.message


def colors(image):
    """Return the colors in the middle of the left and the right half."""
    return [image.getpixel((x * image.width // 4, image.height // 2)) for x in (1, 3)]


def assert_drawing(image, tolerance=12):
    assert ("RGB", (48, 32)) == (image.mode, image.size)
    assert np.abs(np.subtract(colors(image), [BLUE, RED])).max() <= tolerance


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_format_is_decoded(format_):
    assert_drawing(decode(encode(drawing(), format_)))


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_decoded(format_):
    frames = [Image.new("RGB", (48, 32), color) for color in ("green", "yellow")]

    assert_drawing(decode(encode(drawing(), format_, save_all=True, append_images=frames)))


@pytest.mark.skipif(importlib.util.find_spec("pi_heif") is None, reason="pi-heif is not installed")
def test_heic_is_decoded():
    assert_drawing(decode(HEIC))
    assert "damaged or incomplete" in rejection(HEIC[:-200])


def test_heic_without_its_package_is_rejected_with_what_to_install(monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda name: None)

    assert "osaurusd[heic]" in rejection(HEIC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_upright(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = drawing() if orientation == 1 else drawing().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert_drawing(decode(encode(stored, "JPEG", exif=exif, quality=95)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_do_not_matter():
    assert_drawing(decode(encode(drawing(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_become_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    if mode == "PA":
        image = image.convert("P")
        image.info["transparency"] = image.getpixel((0, 0))
        data = encode(image, "PNG", transparency=image.getpixel((0, 0)))
    else:
        data = encode(image.convert(mode), "PNG")

    assert (255, 255, 255) == decode(data).getpixel((1, 1))


def test_half_transparent_pixels_are_mixed_with_white():
    red, green, blue = decode(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))).getpixel((1, 1))

    assert (255, 127, 127) == (red, green, blue)


def test_palette_is_applied():
    assert_drawing(decode(encode(drawing().quantize(4))))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_images_become_rgb(mode):
    image = decode(encode(Image.new(mode, (4, 4), 1 if mode == "1" else 90)))

    assert ((255,) * 3 if mode == "1" else (90,) * 3) == image.getpixel((1, 1))


def test_16_bit_values_are_scaled():
    image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))

    assert (128, 128, 128) == decode(encode(image)).getpixel((1, 1))


def test_cmyk_is_converted():
    image = decode(encode(drawing().convert("CMYK"), "JPEG", quality=95))

    assert_drawing(image)


@pytest.mark.parametrize("problem", BAD_IMAGES)
def test_bad_image_is_rejected(problem):
    message = rejection(BAD_IMAGES[problem])

    assert any(text in message for text in ("supported format", "damaged or incomplete", "vision.max_image_pixels"))
    assert " object at 0x" not in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "HEIF"])
def test_damaged_file_is_decoded_or_rejected(format_):
    file = HEIC if format_ == "HEIF" else encode(drawing(), format_)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(file)
        for position in random.integers(4, len(file), random.integers(1, 9)):
            damaged[position] = random.integers(256)
        try:
            image = decode(bytes(damaged[: random.integers(len(file) // 2, 2 * len(file))]))
        except InvalidRequest as error:
            assert LOCATION == error.location  # noqa: PT017  both outcomes are right
        else:
            assert "RGB" == image.mode


def test_image_with_too_many_pixels_is_rejected_before_it_is_decoded():
    bomb = png_bomb(4000, 3000)
    broken = bomb[:-20]

    assert "4000 x 3000 pixels; at most 10000000 are allowed (`vision.max_image_pixels`)" in rejection(broken)
    assert (4000, 3000) == decode(bomb, 12_000_000).size


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_bomb_that_pillow_detects_is_rejected(side):
    assert "`vision.max_image_pixels`" in rejection(with_size(PNG, side, side))


def test_text_of_a_png_does_not_expand_without_a_limit():
    info = PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)

    assert "damaged or incomplete" in rejection(encode(drawing(), pnginfo=info))


def test_what_follows_an_image_is_ignored():
    assert_drawing(decode(PNG + b"<html><script>alert(1)</script></html>"))
