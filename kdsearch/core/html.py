"""What a notebook shows of a value: small tables and pictures in HTML, all text in them escaped."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import PIL.Image
from torch import Tensor

from kdsearch.core.terminal import escape_unprintable

CELL = "text-align: left; vertical-align: top; padding: .1em .8em .1em 0"
LEAST_SIDE, MOST_SIDE = 64, 128  # pixels that a picture is shown with; small ones are made larger without smoothing


def escape_html(text: object) -> str:
    """
    >>> escape_html("<b>\\x1b")
    '&lt;b&gt;\\\\x1b'
    """
    return escape(escape_unprintable(str(text)))


def html_paragraph(text: object) -> str:
    """One of text."""
    return f"<p>{escape_html(text)}</p>"


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of text under a head.

    >>> "<td style" in html_table(["a"], [[1]]), "<th" in html_table([], [[1]])
    (True, False)
    """
    head = "".join(f'<th style="{CELL}">{escape_html(name)}</th>' for name in columns)
    lines = ["".join(f'<td style="{CELL}">{escape_html(cell)}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def html_facts(named: Mapping[str, object]) -> str:
    """Names and what they are, a row each."""
    return html_table([], named.items())


def html_pictures(images: Tensor, captions: Sequence[object]) -> str:
    """Images beside each other, a caption below each.

    Args:
        images: (N, C, H, W), float in [0, 1], 1 or 3 channels.
    """
    times = max(1, LEAST_SIDE // max(images.shape[-2:]))
    found = []
    for image, caption in zip(images, captions, strict=True):
        pixels = (image.movedim(0, -1).nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
        file, picture = io.BytesIO(), PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.thumbnail((MOST_SIDE, MOST_SIDE))
        picture.save(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        how = f"width: {times * picture.width}px; margin: 0; image-rendering: {'pixelated' if times > 1 else 'auto'}"
        found.append(
            f'<figure style="display: inline-block; margin: 0 .5em .5em 0; text-align: center">'
            f'<img style="{how}" src="data:image/png;base64,{data}" alt="">'
            f"<figcaption>{escape_html(caption)}</figcaption></figure>"
        )
    return f"<div>{''.join(found)}</div>"
