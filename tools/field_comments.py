"""A griffe extension: what docstrings of this repository leave to the code is on the site too.

The comment that ends the line of a field, with its shape or unit, becomes an entry of the class's `Attributes`, a
doctest becomes a block of code, and `Reference:` the source of what it stands below.
"""

import io
import re
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
SOURCE = re.compile(r"^References?:\n((?: +.+(?:\n|\Z))+)", re.MULTILINE)


@cache
def find_comments(file: Path) -> Mapping[int, str]:
    """What the comments of a file say, by the number of their line, the first being 1."""
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def list_fields(owner: griffe.Class) -> list[str]:
    """The fields of a class whose line ends in a comment, as lines of a section of a docstring."""
    found = []
    for name, field in owner.attributes.items():
        if name.startswith("_") or field.docstring or field.is_alias or not isinstance(field.filepath, Path):
            continue
        said = find_comments(field.filepath).get(field.endlineno or 0)
        if said:
            found.append(f"    {name}: {said[0].upper()}{said[1:]}{'' if said.endswith(('.', '?')) else '.'}")
    return found


class FieldComments(griffe.Extension):
    """Adds the section to classes, and to all fences around doctests and a word before sources."""

    def on_class(self, *, cls: griffe.Class, **rest: Any) -> None:
        fields = list_fields(cls)
        if fields and cls.docstring:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(fields)

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        if obj.docstring:
            text = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = SOURCE.sub(lambda found: f"**Source:** {' '.join(found[1].split())}\n", text)
