"""Drawings with known content: coloured shapes or a digit on a dark background."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (222, 30, 36),
    "green": (28, 160, 52),
    "blue": (32, 76, 236),
    "yellow": (244, 222, 34),
    "orange": (246, 136, 16),
    "purple": (134, 36, 176),
    "pink": (250, 150, 190),
    "white": (250, 250, 250),
}

SHAPES = ("circle", "square", "triangle", "star")
COUNTS = ("one", "two", "three", "four")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

DIGIT_SHARE, SHAPE_SHARE = 0.3, 0.3
"""Fractions of drawings with a digit, and with a single shape; the others have several shapes."""

SEGMENTS = ("abcdef", "i", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""The strokes of each digit, as in a seven-segment display; that of one is in the middle."""

STROKES = {
    "a": (-0.55, -0.85, 0.55, -0.85),
    "b": (0.55, -0.85, 0.55, 0),
    "c": (0.55, 0, 0.55, 0.85),
    "d": (-0.55, 0.85, 0.55, 0.85),
    "e": (-0.55, 0, -0.55, 0.85),
    "f": (-0.55, -0.85, -0.55, 0),
    "g": (-0.55, 0, 0.55, 0),
    "i": (0, -0.85, 0, 0.85),
}
"""The ends of each stroke as fractions of the radius, from the centre."""

STROKE_WIDTH = 0.32

VALIDATION, HELD_BACK = 1_000_000_000, 3_000_000_000
"""Seeds from here on are never used in training.

The first ones show its progress, and those from 2,000,000,000 on were used to choose the prompt template. The last ones
are for tests only.
"""

COLOUR_NOISE = 10
MIN_EDGE, MAX_EDGE = 96, 400

Colour = tuple[int, int, int]

Place = tuple[float, float, float]
"""A circle: x, y and radius, as fractions of the edge."""


@dataclass(frozen=True)
class Drawing:
    """An image and its content: `count` objects of the same kind and colour. A single one is near a side.

    Attributes:
        kind: a shape or a digit.
    """

    image: Image.Image
    colour: str
    kind: str
    count: int
    side: str | None

    @property
    def shape(self) -> str | None:
        return None if self.kind in DIGITS else self.kind

    @property
    def digit(self) -> str | None:
        return self.kind if self.kind in DIGITS else None


def draw(seed: int) -> Drawing:
    """Draw what this seed determines."""
    return draw_random(random.Random(seed))


def held_back(number: int, *, start: int = 0) -> Iterator[Drawing]:
    """Yield drawings that are not used in training."""
    for seed in range(HELD_BACK + start, HELD_BACK + start + number):
        yield draw(seed)


def draw_random(rng: random.Random, *, edge: int | None = None) -> Drawing:
    """Draw shapes or a digit.

    Args:
        rng: the source of every choice.
        edge: width and height in pixels. None: random.
    """
    edge = edge or rng.randint(MIN_EDGE, MAX_EDGE)
    colour, content = rng.choice(tuple(COLOURS)), rng.random()
    kind = rng.choice(DIGITS if content < DIGIT_SHARE else SHAPES)
    image = paint_background(rng, edge)
    if content < DIGIT_SHARE + SHAPE_SHARE:
        side = rng.choice(tuple(SIDES))
        places = [choose_place(rng, SIDES[side])]
    else:
        side, places = None, choose_places(rng, rng.randint(2, len(COUNTS)))
    draw_objects(rng, image, kind, vary(rng, COLOURS[colour]), places)
    return Drawing(image, colour, kind, len(places), side)


def vary(rng: random.Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-COLOUR_NOISE, COLOUR_NOISE))) for value in colour)
    return red, green, blue


def paint_background(rng: random.Random, edge: int) -> Image.Image:
    """Create an image in a dark colour, with a slight gradient and noise."""
    grey = rng.randint(8, 50)
    colour = np.array([grey + rng.randint(-8, 12) for _ in range(3)], dtype=np.float32)
    slope = np.linspace(-1, 1, edge, dtype=np.float32)
    gradient = rng.uniform(-8, 8) * slope[:, None] + rng.uniform(-8, 8) * slope[None, :]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 4), (edge, edge))
    pixels = colour + (gradient + noise)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def choose_place(rng: random.Random, direction: tuple[int, int]) -> Place:
    """Choose a place for a single object, clearly in this direction from the centre."""
    radius = rng.uniform(0.2, 0.34)
    distance = rng.uniform(0.12, 0.5 - radius)
    x, y = (0.5 + axis * distance + (0 if axis else rng.uniform(-0.06, 0.06)) for axis in direction)
    return x, y, radius


def choose_places(rng: random.Random, count: int) -> list[Place]:
    """Choose places that touch neither each other nor the border."""
    while True:
        places: list[Place] = []
        for _ in range(60):
            radius = rng.uniform(0.15, 0.2)
            x, y = (rng.uniform(radius, 1 - radius) for _ in range(2))
            if all(math.dist((x, y), other[:2]) > radius + other[2] + 0.04 for other in places):
                places.append((x, y, radius))
            if len(places) == count:
                return places


def draw_objects(rng: random.Random, image: Image.Image, kind: str, colour: Colour, places: list[Place]) -> None:
    """Draw a shape or digit at each place, with smooth edges."""
    edge, scale = image.width, 4
    mask = Image.new("L", (edge * scale, edge * scale))
    canvas = ImageDraw.Draw(mask)
    for place in places:
        x, y, radius = (value * edge * scale for value in place)
        if kind == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        elif kind in DIGITS:
            for rectangle in strokes(kind, x, y, radius):
                canvas.rectangle(rectangle, fill=255)
        else:
            canvas.polygon(outline(kind, x, y, radius, math.radians(rng.uniform(-10, 10))), fill=255)
    image.paste(colour, mask=mask.resize((edge, edge), Image.Resampling.BOX))


def strokes(digit: str, x: float, y: float, radius: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield the rectangles of a digit."""
    half = STROKE_WIDTH / 2
    for segment in SEGMENTS[DIGITS.index(digit)]:
        left, top, right, bottom = STROKES[segment]
        yield (
            x + radius * (left - half),
            y + radius * (top - half),
            x + radius * (right + half),
            y + radius * (bottom + half),
        )


def outline(shape: str, x: float, y: float, radius: float, rotation: float) -> list[tuple[float, float]]:
    """Return the corners of a shape. The first one of a triangle or star is at the top, before the rotation."""
    corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    start = rotation - math.pi / (4 if shape == "square" else 2)
    points = []
    for number in range(corners):
        angle = start + 2 * math.pi * number / corners
        distance = radius * (inner if number % 2 else 1.0) if shape == "star" else radius
        points.append((x + distance * math.cos(angle), y + distance * math.sin(angle)))
    return points
