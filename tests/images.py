"""Image files for tests: of any format, and broken ones."""

import base64
import io
import struct
import zlib

from PIL import Image

RED, BLUE = (200, 30, 40), (20, 60, 220)


def drawing(size=(48, 32)):
    """Return an image whose left half is blue and whose right half is red."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, 0, size[0] // 2, size[1]))
    return image


def encode(image, format_="PNG", **options):
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def data_url(data, media_type="image/png"):
    """Return the URL that contains a file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_bomb(width, height):
    """Return a small PNG that decodes to an image of this size."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, content) for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def with_size(png, width, height):
    """Return a PNG whose header has another size."""
    header = struct.pack(">II", width, height) + png[24:29]
    return png[:8] + _chunk(b"IHDR", header) + png[33:]


def _chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


PNG = encode(drawing())

BAD_IMAGES = {
    "empty text": b"hello",
    "html before a png": b"<html><script>alert(1)</script>" + PNG,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "pdf": b"%PDF-1.7\n1 0 obj",
    "bmp": encode(drawing(), "BMP"),
    "tiff": encode(drawing(), "TIFF"),
    "riff that is no webp": b"RIFF\x10\0\0\0WAVEfmt ",
    "truncated png": PNG[:-30],
    "truncated jpeg": encode(drawing(), "JPEG")[:-40],
    "truncated gif": encode(drawing(), "GIF")[:30],
    "truncated webp": encode(drawing(), "WEBP")[:40],
    "png header only": PNG[:8],
    "jpeg header only": b"\xff\xd8\xff",
    "png with a wrong checksum": PNG[:45] + bytes([PNG[45] ^ 255]) + PNG[46:],
    "bomb": with_size(PNG, 9000, 9000),
}
"""Files that are no images that a model can see, by what is wrong with them."""
