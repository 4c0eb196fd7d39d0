"""A figure as PNG, and for the dark pages: other ink and ground, the data in their colours."""

import base64
import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from seaborn.utils import relative_luminance

GROUND = "#12171d"  # as in book/_static/custom.css
INKS = {"#333333": "#d9e0e7", "black": "#f0f4f8", "#666666": "#a9b1ba", "#707070": "#a9b1ba"}
# Colours of data that are weak on one of the two grounds: there they are others.
HUES = {"#882255": "#D0507F", "#0072B2": "#2387CB", "#3A9BDC": "#6FBDEF", "#C88700": "#E69F00"}
LETTERS = "smallest letters"  # key of a picture's own text
PARTS = ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor")


def darken(figure: Figure) -> None:
    """Exchange ink and ground, and the colours in ``HUES``; other colours stay.

    The figure must have been drawn once: ticks exist from then on. Faces of bars, of cells and in
    legends are data, in ink too; white letters stand on cells.
    """
    for artist in figure.findobj():
        if (alpha := artist.get_alpha()) is not None:
            artist.set_alpha(np.sqrt(alpha))  # less of the dark ground shines through
        inks = INKS | HUES | ({} if isinstance(artist, Text) else {"white": GROUND})
        for part in PARTS:
            colours = to_rgba_array(getattr(artist, f"get_{part}", tuple)())
            exchanged, face = colours.copy(), part == "facecolor" and isinstance(artist, Patch)
            for ink, other in (HUES if face else inks).items():
                exchanged[np.isclose(colours[:, :3], to_rgb(ink)).all(axis=1), :3] = to_rgb(other)
            if (exchanged != colours).any():
                artist.set(**{part: exchanged if len(exchanged) > 1 else exchanged[0]})
    for text in figure.findobj(Text):
        red, green, blue = to_rgb(text.get_color())
        if np.ptp((red, green, blue)) > 0.1:  # in the colour of a line: half way to white
            text.set_color(((red + 1) / 2, (green + 1) / 2, (blue + 1) / 2))
        if arrow := getattr(text, "arrow_patch", None):  # no child of the text
            arrow.set_color(text.get_color())
    for axes in figure.axes:
        axes.set_facecolor(GROUND)
        ink_on_cells(axes, GROUND)


def ink_on_cells(axes: Axes, ground: str) -> None:
    """Give a heat map's numbers the ink that contrasts more; the ground shines through cells."""
    for cells in (each for each in axes.collections if isinstance(each, QuadMesh)):
        known = ~np.ma.getmaskarray(np.ma.asarray(cells.get_array())).ravel()
        faces = np.asarray(cells.get_facecolor())[known]
        seen = faces[:, 3:] * faces[:, :3] + (1 - faces[:, 3:]) * to_rgb(ground)
        for number, face in zip(axes.texts, seen, strict=False):
            # At 0.18 both contrast alike; neither is in `INKS`.
            number.set_color("white" if relative_luminance(face) < 0.18 else "#050505")


def png(figure: Figure, ground: str) -> str:
    """In base64 and 256 colours: a third of the bytes, and the eye sees no difference.

    The picture tells the height of its smallest letters in its own pixels, for pages on phones.
    """
    drawn, image, told = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", bbox_inches="tight", facecolor=ground)
    picture = Image.open(drawn)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    points = min((float(text.get_fontsize()) for text in texts), default=np.inf)
    told.add_text(LETTERS, f"{points / 72 * picture.info['dpi'][0]:.1f}")
    colours = picture.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    colours.save(image, format="PNG", optimize=True, pnginfo=told)
    return base64.b64encode(image.getvalue()).decode()
