"""Pictures of the visual suite: a grid of outlined shapes with a digit inside each.

Everything is drawn from the coordinates and bitmaps below, without a font: the pixels are the same
on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

#: Cells a side, and pixels a side of a cell.
GRID, CELL = 2, 32
SIDE = GRID * CELL
PAPER, INK = 255, 0
#: Width of an outline, and of the dots that a digit is made of.
LINE, DOT = 2, 2

#: Outlines in a cell's own pixels, corner after corner; the circle is no polygon.
OUTLINES: dict[str, tuple[tuple[int, int], ...]] = {
    "s": ((2, 2), (29, 2), (29, 29), (2, 29)),
    "t": ((15, 0), (31, 31), (0, 31)),
    "d": ((15, 0), (31, 16), (15, 31), (0, 16)),
    "h": ((8, 1), (23, 1), (31, 16), (23, 30), (8, 30), (0, 16)),
    "p": (
        *((8, 0), (23, 0), (23, 8), (31, 8), (31, 23), (23, 23)),
        *((23, 31), (8, 31), (8, 23), (0, 23), (0, 8), (8, 8)),
    ),
}
CIRCLE = (1, 1, 30, 30)

#: Rows of five dots, top to bottom; `#` is ink.
DIGITS = (
    (".###.", "#...#", "#..##", "#.#.#", "##..#", "#...#", ".###."),
    ("..#..", ".##..", "..#..", "..#..", "..#..", "..#..", ".###."),
    (".###.", "#...#", "....#", "...#.", "..#..", ".#...", "#####"),
    ("####.", "....#", "....#", ".###.", "....#", "....#", "####."),
    ("...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."),
    ("#####", "#....", "####.", "....#", "....#", "#...#", ".###."),
    (".###.", "#....", "#....", "####.", "#...#", "#...#", ".###."),
    ("#####", "....#", "...#.", "..#..", "..#..", ".#...", ".#..."),
    (".###.", "#...#", "#...#", ".###.", "#...#", "#...#", ".###."),
    (".###.", "#...#", "#...#", ".####", "....#", "....#", ".###."),
)
#: Left upper corner of the digit in its cell; the triangle is wide enough for it lower down only.
PLACE, PLACE_IN_TRIANGLE = (12, 10), (12, 14)


def draw_grid(cells: Sequence[tuple[str, int]]) -> Image.Image:
    """A picture in grey of :data:`SIDE` x :data:`SIDE` pixels.

    Args:
        cells: the shape and its digit, row by row.
    """
    picture = Image.new("L", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(picture)
    for place, (shape, digit) in enumerate(cells):
        row, column = divmod(place, GRID)
        _draw_cell(pen, column * CELL, row * CELL, shape, digit)
    return picture


def _draw_cell(pen: ImageDraw.ImageDraw, left: int, top: int, shape: str, digit: int) -> None:
    if shape == "c":
        x0, y0, x1, y1 = CIRCLE
        pen.ellipse((left + x0, top + y0, left + x1, top + y1), outline=INK, width=LINE)
    else:
        corners = [(left + x, top + y) for x, y in OUTLINES[shape]]
        pen.polygon(corners, outline=INK, width=LINE)
    x, y = PLACE_IN_TRIANGLE if shape == "t" else PLACE
    for row, dots in enumerate(DIGITS[digit]):
        for column, dot in enumerate(dots):
            if dot == "#":
                x0, y0 = left + x + DOT * column, top + y + DOT * row
                pen.rectangle((x0, y0, x0 + DOT - 1, y0 + DOT - 1), fill=INK)
