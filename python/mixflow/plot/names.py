"""Names of columns on a picture, as the user wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

__all__ = ["write_name"]


def write_name(text: Text, name: str, number: str, room: float) -> None:
    """Write a name as it is, and never as mathematics, even if it holds dollar signs.

    Args:
        text: the text of the picture to set.
        name: the name by the user.
        number: a text to put before a name that no font can draw.
        room: the most width of the name, in points. A longer name loses its middle.

    """
    name = "\n".join(line.replace("\t", " ") for line in name.splitlines())
    families = [*text.get_fontfamily(), "DejaVu Sans"]  # the last comes with matplotlib, and has … and □
    own = [path for path in map(_file, families) if path]
    lacking = {letter for letter in name if letter != "\n" and not any(_has(path, letter) for path in own)}
    others, lacking = _other_fonts(frozenset(lacking), len(fontManager.ttflist))
    if lacking or not name.strip():
        name = f"{number} {''.join('□' if letter in lacking else letter for letter in name)}".strip()
    text.set_fontfamily([*families, *others])
    text.set_parse_math(False)
    text.set_usetex(False)
    text.set_text(_shortened(name, text, room))


def _shortened(name: str, text: Text, room: float) -> str:
    """The name on one or two lines if it fits. Otherwise its start and end, with … between, as long as they fit."""

    def fits(shown: str) -> bool:
        lines = shown.split("\n")
        properties = text.get_fontproperties()
        return len(lines) <= 2 and all(
            text_to_path.get_text_width_height_descent(line, properties, ismath=False)[0] <= room for line in lines
        )

    line = " ".join(name.split())
    for whole in (name, line, *_on_two_lines(line)):
        if fits(whole):
            return whole
    least, most = 1, len(line) - 1
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(_without_middle(line, middle)) else (least, middle - 1)
    return _without_middle(line, least)


def _on_two_lines(line: str) -> Iterator[str]:
    """The line, broken after a space or another mark between words, at the three places nearest to its middle."""
    places = sorted((abs(2 * mark.end() - len(line)), mark.end()) for mark in re.finditer(r"[ _./-]", line))
    for _, place in places[:3]:
        yield f"{line[:place].rstrip()}\n{line[place:]}"


def _without_middle(line: str, kept: int) -> str:
    return f"{line[: (kept + 1) // 2]}…{line[len(line) - kept // 2 :]}"


def _file(family: str) -> str | None:
    """The file of a font; None if it is not installed."""
    try:
        return findfont(FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _has(path: str, letter: str) -> bool:
    """Whether the font in the file ``path`` has a glyph for ``letter``."""
    try:
        return bool(get_font(path).get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # matplotlib cannot read this font
        return False


@lru_cache(maxsize=64)
def _other_fonts(letters: frozenset[str], installed: int) -> tuple[list[str], set[str]]:
    """Families of the fonts ``installed`` that together have the most of ``letters``, and the letters that none has."""
    # Two kinds of fonts are left out: matplotlib's fonts of mathematical symbols, which have symbols in the place of
    # letters, and the last resort of some systems, which has a box for every letter.
    usable = [
        font
        for font in fontManager.ttflist[:installed]
        if not font.fname.startswith(mpl.get_data_path()) and "lastresort" not in font.name.lower().replace(" ", "")
    ]
    fonts = {font.fname: font.name for font in usable}
    families, lacking = [], set(letters)
    while lacking and fonts:
        has = {path: {letter for letter in lacking if _has(path, letter)} for path in fonts}
        best = max(has, key=lambda path: len(has[path]))
        if not has[best]:
            break
        families.append(fonts[best])
        lacking -= has[best]
        fonts = {path: name for path, name in fonts.items() if has[path]}
    return families, lacking
