"""Drawings with known content: coloured shapes, or a digit, on a random background."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (222, 30, 36),
    "green": (28, 150, 52),
    "blue": (32, 66, 216),
    "yellow": (244, 222, 34),
    "orange": (246, 136, 16),
    "purple": (124, 36, 156),
    "pink": (250, 150, 190),
    "brown": (118, 70, 32),
    "black": (14, 14, 14),
    "white": (252, 252, 252),
}

SHAPES = ("circle", "square", "triangle", "star")
COUNTS = ("one", "two", "three", "four")
DIGIT_NAMES = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True),
)

HELD_BACK = 1_000_000_000
"""Seeds from here on are never used in training."""

COLOUR_NOISE = 10
MIN_CONTRAST = 85.0
MIN_SIDE, MAX_SIDE = 96, 320


@dataclass(frozen=True)
class Drawing:
    """An image and its content.

    `count` objects have the same shape and colour. `shape` is one of `SHAPES`, or a digit such as "7".
    """

    image: Image.Image
    colour: str
    shape: str
    count: int = 1

    @property
    def is_digit(self) -> bool:
        return self.shape in DIGIT_NAMES


def draw(seed: int) -> Drawing:
    """Draw what this seed determines."""
    return draw_random(random.Random(seed))


def held_back(number: int, *, start: int = 0) -> Iterator[Drawing]:
    """Yield drawings that are not used in training."""
    for seed in range(HELD_BACK + start, HELD_BACK + start + number):
        yield draw(seed)


def draw_random(rng: random.Random, *, side: int | None = None) -> Drawing:
    """Draw a random drawing.

    Args:
        rng: the source of every choice.
        side: width and height in pixels. None: random.
    """
    side = side or rng.randint(MIN_SIDE, MAX_SIDE)
    name = rng.choice(tuple(COLOURS))
    colour = vary(rng, COLOURS[name])
    image = paint_background(rng, side, colour)
    if rng.random() < 0.25:
        digit = rng.choice(tuple(DIGIT_NAMES))
        place_digit(rng, image, digit, colour)
        return Drawing(image, name, digit)
    shape = rng.choice(SHAPES)
    count = 1 if rng.random() < 0.5 else rng.randint(2, len(COUNTS))
    circles = choose_places(rng, count)
    draw_shapes(rng, image, shape, colour, circles)
    return Drawing(image, name, shape, count)


def vary(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-COLOUR_NOISE, COLOUR_NOISE))) for value in colour)
    return red, green, blue


def paint_background(rng: random.Random, side: int, colour: tuple[int, int, int]) -> Image.Image:
    """Create an image in a greyish colour that differs from `colour`, with a slight gradient and noise."""
    while True:
        grey = rng.randint(30, 235)
        background = np.array([grey + rng.randint(-24, 24) for _ in range(3)], dtype=np.float32)
        if math.dist(background, colour) >= MIN_CONTRAST:
            break
    noise = np.random.default_rng(rng.getrandbits(32))
    slope = np.linspace(-1, 1, side, dtype=np.float32)
    gradient = rng.uniform(-10, 10) * slope[:, None] + rng.uniform(-10, 10) * slope[None, :]
    grain = noise.normal(0, rng.uniform(0, 5), (side, side)).astype(np.float32)
    pixels = background + (gradient + grain)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def choose_places(rng: random.Random, count: int) -> list[tuple[float, float, float]]:
    """Choose circles (x, y, radius; fractions of the side) that do not touch each other or the border."""
    if count == 1:
        radius = rng.uniform(0.16, 0.4)
        return [(rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius), radius)]
    while True:
        circles: list[tuple[float, float, float]] = []
        for _ in range(60):
            radius = rng.uniform(0.13, 0.2)
            x, y = (rng.uniform(radius, 1 - radius) for _ in range(2))
            if all(math.dist((x, y), other[:2]) > radius + other[2] + 0.04 for other in circles):
                circles.append((x, y, radius))
            if len(circles) == count:
                return circles


def draw_shapes(
    rng: random.Random,
    image: Image.Image,
    shape: str,
    colour: tuple[int, int, int],
    circles: list[tuple[float, float, float]],
) -> None:
    """Draw a shape into each circle, with smooth edges."""
    side, scale = image.width, 4
    mask = Image.new("L", (side * scale, side * scale))
    canvas = ImageDraw.Draw(mask)
    for circle in circles:
        x, y, radius = (value * side * scale for value in circle)
        if shape == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        else:
            canvas.polygon(outline(shape, x, y, radius, math.radians(rng.uniform(-15, 15))), fill=255)
    image.paste(colour, mask=mask.resize((side, side), Image.Resampling.BOX))


def outline(shape: str, x: float, y: float, radius: float, rotation: float) -> list[tuple[float, float]]:
    """Return the corners of a shape. The first one of a triangle or star is at the top, rotated."""
    corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    start = rotation - math.pi / (4 if shape == "square" else 2)
    points = []
    for number in range(corners):
        angle = start + 2 * math.pi * number / corners
        distance = radius * (inner if number % 2 and shape == "star" else 1.0)
        points.append((x + distance * math.cos(angle), y + distance * math.sin(angle)))
    return points


def place_digit(rng: random.Random, image: Image.Image, digit: str, colour: tuple[int, int, int]) -> None:
    """Draw a digit in a random size, at a random place."""
    side = image.width
    font = ImageFont.load_default(side * rng.uniform(0.5, 0.9))
    left, top, right, bottom = font.getbbox(digit)
    x = rng.uniform(0.05 * side - left, 0.95 * side - right)
    y = rng.uniform(0.05 * side - top, 0.95 * side - bottom)
    ImageDraw.Draw(image).text((x, y), digit, fill=colour, font=font, stroke_width=round(side * rng.uniform(0, 0.03)))
