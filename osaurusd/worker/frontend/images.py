"""Decodes the image files of requests.

The content selects the decoder, never a name or a declared type: only a few formats for photos and screenshots are
decoded. Pillow's other decoders, some of which start programs, are never reached.
"""

import io
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import Location

_HEIC = "HEIF"

_SIGNATURES = (
    ("PNG", 0, (b"\x89PNG\r\n\x1a\n",)),
    ("JPEG", 0, (b"\xff\xd8\xff",)),
    ("GIF", 0, (b"GIF87a", b"GIF89a")),
    ("WEBP", 8, (b"WEBP",)),
    (
        _HEIC,
        4,
        (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1"),
    ),
)
"""The formats by the bytes at an offset."""

_FORMATS = "PNG, JPEG, WebP or GIF"
_WHITE = (255, 255, 255, 255)
_ORIENTATION_TAG = 0x0112


def decode_image(data: bytes, *, max_pixels: int, location: Location) -> Image.Image:
    """Decode an image file to RGB: its first frame, upright, on white where it is transparent. Safe on any thread.

    Args:
        data: the file.
        max_pixels: larger images are rejected before they are decoded.
        location: of the image, for errors.

    Raises:
        InvalidRequest: the file is not an image in a supported format, is damaged, or has too many pixels.
    """
    format_ = _find_format(data, location)
    try:
        image = Image.open(io.BytesIO(data), formats=[format_])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("too many pixels to be decoded", max_pixels, location) from error
    except UnidentifiedImageError as error:  # its text shows a memory address
        raise _damaged(format_, ValueError("its header is invalid"), location) from error
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise _damaged(format_, error, location) from error
    with image:
        if image.width * image.height > max_pixels:
            raise _too_large(f"{image.width} x {image.height} pixels", max_pixels, location)
        try:
            image.load()
            return _flatten(_turn(image))
        except Exception as error:  # see above
            raise _damaged(format_, error, location) from error


def _find_format(data: bytes, location: Location) -> str:
    """Return the name of the format in Pillow."""
    for format_, offset, signatures in _SIGNATURES:
        if data.startswith(signatures, offset) and (format_ != "WEBP" or data.startswith(b"RIFF")):
            if format_ == _HEIC:
                _enable_heic(location)
            return format_
    raise InvalidRequest(f"the file is not an image in a supported format; send {_FORMATS}", location=location)


def _enable_heic(location: Location) -> None:
    if find_spec("pi_heif") is None:
        raise InvalidRequest(
            f"HEIC images need a package that is not installed; convert the image to {_FORMATS}, or install "
            '"osaurusd[heic]" and run "osaurusctl restart"',
            location=location,
        )
    # An optional package, and few requests have such images.
    import pi_heif  # noqa: PLC0415

    pi_heif.register_heif_opener()


def _turn(image: Image.Image) -> Image.Image:
    """Apply the orientation in the metadata, unless they are damaged, which viewers ignore too."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  each kind of damage raises another error
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _flatten(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB."""
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_large(size: str, max_pixels: int, location: Location) -> InvalidRequest:
    return InvalidRequest(
        f"the image has {size}; at most {max_pixels} are allowed (`vision.max_image_pixels`)",
        location=location,
    )


def _damaged(format_: str, error: Exception, location: Location) -> InvalidRequest:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InvalidRequest(f"the {format_} image is damaged or incomplete: {reason}", location=location)
