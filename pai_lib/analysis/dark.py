"""A figure as PNG, and for the dark pages: other ink and ground, the data in their colours."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

GROUND = "#12171d"  # as in book/_static/custom.css
INKS = {"#333333": "#d9e0e7", "black": "#f0f4f8", "#666666": "#a9b1ba", "#707070": "#a9b1ba"}
LETTERS = "smallest letters"  # key of a picture's own text
PARTS = ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor")


def darken(figure: Figure) -> None:
    """Exchange ink and ground where an artist has one of them alone; colours stay.

    The figure must have been drawn once: ticks exist from then on. Faces of bars, of cells and in
    legends are data; white letters stand on cells.
    """
    for artist in figure.findobj():
        inks = INKS if isinstance(artist, Text) else {**INKS, "white": GROUND}
        for part in PARTS:
            get = getattr(artist, f"get_{part}", None)
            if get is None or (part == "facecolor" and isinstance(artist, Patch)):
                continue
            colours = to_rgba_array(get())
            for ink, other in inks.items():
                if len(colours) and np.allclose(colours[:, :3], to_rgb(ink)):
                    exchanged = [(*to_rgb(other), alpha) for alpha in colours[:, 3]]
                    artist.set(**{part: exchanged[0] if len(exchanged) == 1 else exchanged})
                    break
    for text in figure.findobj(Text):
        red, green, blue = to_rgb(text.get_color())
        if np.ptp((red, green, blue)) > 0.1:  # in the colour of a line: half way to white
            text.set_color(((red + 1) / 2, (green + 1) / 2, (blue + 1) / 2))
    for axes in figure.axes:
        axes.set_facecolor(GROUND)


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
