"""A figure as short inline SVG in the page's colors, drawn once, with the same bytes on every machine.

matplotlib's own SVG has a group around everything and repeats each style and each clip: five times as long, and drawn
twice for its layout. Here what looks alike shares a class or a group, coordinates are relative and end after a
hundredth of a point, and only what crosses the edge of its axes is clipped. Names of classes and ids follow from what
they stand for, so that figures on one page do not disturb each other. Images and hatches are not known.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase, GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, ttfFontProperty
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, Bbox, Transform

from reproduce.report.computed_once import computed_once

ANCHORS = {"left": "", "right": "end", "center": "middle"}
CAPS = {"butt": "", "round": "round", "projecting": "square"}
COLORS = re.compile(r"(?:fill|stroke):([^;]*)")
SHORT = 40  # characters of a marker's path that are not worth a definition
SLACK = 0.5  # points by which a line may stand over the edge of its axes before it is clipped


def rules_once(page: str) -> str:
    """A page whose figures repeat no style: its class stands for the whole page."""
    seen: set[str] = set()

    def not_seen(style: re.Match[str]) -> str:
        rules = [rule for rule in dict.fromkeys(re.findall(r"\.[^}]*}", style[1])) if rule not in seen]
        seen.update(rules)
        return f"<style>{''.join(rules)}</style>" if rules else ""

    return re.sub(r"<style>(\.[^<]*)</style>", not_seen, page)


def inline_svg(figure: Figure, description: str, color: Callable[[str], str]) -> str:
    """The figure as an SVG element that fills what it stands in.

    Args:
        description: what a reader who does not see the figure is told.
        color: how a hexadecimal color is spelled in CSS.
    """
    figure.set_dpi(72)  # so that a pixel is a point
    width, height = figure.bbox.size
    renderer = _Renderer(width, height, color)
    _Canvas(figure, renderer)
    with computed_once():
        figure.draw(renderer)
    return renderer.text(description)


class _Canvas(FigureCanvasBase):
    """Lets a figure's layout measure with the renderer that draws it."""

    def __init__(self, figure: Figure, renderer: _Renderer) -> None:
        super().__init__(figure)
        self._renderer = renderer

    def get_renderer(self) -> _Renderer:
        return self._renderer


class _Element(NamedTuple):
    shared: str  # attributes that neighbours may have in common
    tag: str
    rest: str  # of the element; of a path, its data
    joins: bool = False  # whether it may be one path with neighbours: nothing shines through, and no edge is covered


class _Renderer(RendererBase):
    def __init__(self, width: float, height: float, color: Callable[[str], str]) -> None:
        super().__init__()
        self._size = width, height
        self._color = color
        self._flip = Affine2D().scale(1, -1).translate(0, height)
        self._rules: dict[str, str] = {}  # a class for each style
        self._definitions: dict[str, str] = {}  # elements by id
        self._elements: list[_Element] = []
        self._dots: list[tuple[float, float]] = []  # of the last element, where it is one of dots

    def text(self, description: str) -> str:
        width, height = self._size
        rules = "".join(f".{name}{{{style}}}" for style, name in self._rules.items())
        lines = [
            f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {_short(width)} {_short(height)}"'
            ' xmlns="http://www.w3.org/2000/svg">',
            f"<style>{rules}</style>",
            f"<defs>{''.join(self._definitions.values())}</defs>" if self._definitions else "",
            *self._grouped(),
            "</svg>",
        ]
        return "\n".join(line for line in lines if line)

    def _grouped(self) -> Iterator[str]:
        for (shared, joins), run in itertools.groupby(self._elements, lambda element: (element.shared, element.joins)):
            members = list(run)
            if joins:
                yield f'<path{shared} d="{"".join(member.rest for member in members)}"/>'
            elif len(members) == 1 or not shared:
                yield from (f"<{member.tag}{shared}{member.rest}" for member in members)
            else:
                yield f"<g{shared}>{''.join(f'<{member.tag}{member.rest}' for member in members)}</g>"

    # What matplotlib asks of a renderer.

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self._size

    def flipy(self) -> bool:
        return True

    def get_text_width_height_descent(self, s: str, prop: FontProperties, ismath: Any) -> tuple[float, float, float]:
        return _measured(s, prop.copy(), bool(ismath))

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform, rgbFace: Any = None) -> None:
        style = self._style(gc, rgbFace)
        if not style:
            return
        is_line = rgbFace is None
        shown = path.cleaned(
            transform=transform + self._flip,
            remove_nans=True,
            clip=(0, 0, *self._size) if is_line else None,
            simplify=is_line and path.codes is None,  # what it takes away is a ninth of a pixel
            curves=True,
        )
        clip = self._clip(gc, _places(shown))
        data = _data(shown)
        if data and clip is not None:
            self._path(style, clip, data)

    def draw_markers(
        self,
        gc: GraphicsContextBase,
        marker_path: Path,
        marker_trans: Transform,
        path: Path,
        trans: Transform,
        rgbFace: Any = None,
    ) -> None:
        style = self._style(gc, rgbFace)
        if not style:
            return
        marker = marker_path.cleaned(transform=marker_trans + Affine2D().scale(1, -1), curves=True)
        data = _data(marker)
        is_short, places = len(data) <= SHORT, _places(marker)
        is_dot, diameter = marker_path is Path.unit_circle() and "stroke:" not in style, 2 * float(places.max())
        for vertices, _ in path.iter_segments(trans + self._flip, simplify=False):
            x, y = vertices[-2:]
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            clip = self._clip(gc, places + np.array([x, y]))
            if clip is None:
                continue
            if is_dot:
                self._dot(gc, rgbFace, clip, (x, y), diameter)
            elif is_short:
                self._path(style, clip, _data(Path(marker.vertices + np.array([x, y]), marker.codes)))
            else:
                rest = f' href="#{self._defined("path", f""" d="{data}"/>""")}" x="{_short(x)}" y="{_short(y)}"/>'
                self._elements.append(_Element(f"{self._class(style)}{clip}", "use", rest))

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        style = f"{self._font(prop)};{self._paint('fill', gc.get_rgb())}"
        if ismath and _is_formula(s):
            self._formula(style, x, y, s, prop, angle)
            return
        place = f' transform="translate({_short(x)} {_short(y)}) rotate({_short(-angle)})"'
        if mtext is not None and angle == 0:
            # Anchored, since the reader's font is wider or narrower than the one that the layout was made with.
            x = mtext.get_transform().transform(mtext.get_unitless_position())[0]
            place = f' x="{_short(x)}" y="{_short(y)}"'
            anchor = ANCHORS[mtext.get_horizontalalignment()]
            style += f";text-anchor:{anchor}" if anchor else ""
        self._elements.append(_Element(self._class(style), "text", f"{place}>{escape(s, quote=False)}</text>"))

    def _formula(self, style: str, x: float, y: float, s: str, prop: FontProperties, angle: float) -> None:
        """Each sign where matplotlib's typesetting puts it."""
        _, _, _, glyphs, boxes = text_to_path.mathtext_parser.parse(s, 72, prop)
        signs = []
        for font, size, code, *_, at, above in glyphs:
            italic = ' font-style="italic"' if ttfFontProperty(font).style == "italic" else ""
            sign = escape(chr(code), quote=False)
            place = f'x="{_short(at)}" y="{_short(-above)}" font-size="{_short(size)}"{italic}'
            signs.append(f"<tspan {place}>{sign}</tspan>")
        bars = "".join(
            f'<rect x="{_short(at)}" y="{_short(-above - tall)}" width="{_short(wide)}" height="{_short(tall)}"/>'
            for at, above, wide, tall in boxes
        )
        turned = f" rotate({_short(-angle)})" if angle else ""
        place = f' transform="translate({_short(x)} {_short(y)}){turned}"'
        self._elements.append(_Element(self._class(style), "g", f"{place}><text>{''.join(signs)}</text>{bars}</g>"))

    # How it is spelled.

    def _path(self, style: str, clip: str, data: str) -> None:
        colors = set(COLORS.findall(style)) - {"none"}
        joins = "opacity" not in style and len(colors) == 1
        rest = data if joins else f' d="{data}"/>'
        self._elements.append(_Element(f"{self._class(style)}{clip}", "path", rest, joins))

    def _dot(self, gc: GraphicsContextBase, fill: Any, clip: str, center: tuple[float, float], diameter: float) -> None:
        """The end of a line without length: dots that do not touch are one path."""
        forced = gc.get_alpha() if gc.get_forced_alpha() else None
        rgba = (*fill[:3], forced if forced is not None else fill[3] if len(fill) > 3 else 1.0)
        style = f"fill:none;{self._paint('stroke', rgba)};stroke-width:{_short(diameter)};stroke-linecap:round"
        shared = f"{self._class(style)}{clip}"
        data = f"M{_pair(*(round(value * 100) for value in center))}h0"
        last = self._elements[-1] if self._elements else None
        is_beside = all(math.dist(center, other) > diameter for other in self._dots)
        if last is not None and last.shared == shared and (is_beside or rgba[3] == 1):
            self._elements[-1] = last._replace(rest=last.rest.replace('"/>', f'{data}"/>'))
        else:
            self._elements.append(_Element(shared, "path", f' d="{data}"/>'))
            self._dots.clear()
        self._dots.append(center)

    def _style(self, gc: GraphicsContextBase, fill: Any) -> str:
        """CSS of a path; nothing where it cannot be seen."""
        if gc.get_hatch() is not None:
            raise NotImplementedError("hatches in a figure")
        forced = gc.get_alpha() if gc.get_forced_alpha() else None
        if forced == 0:
            return ""
        width = gc.get_linewidth()
        ink = (*gc.get_rgb()[:3], 1.0 if forced is not None else gc.get_rgb()[3])
        is_stroked = width > 0 and ink[3] > 0
        if fill is not None:
            fill = (*fill[:3], 1.0 if forced is not None or len(fill) == 3 else fill[3])
        if not is_stroked and (fill is None or fill[3] == 0):
            return ""
        rules = [self._paint("fill", fill) if fill is not None else "fill:none"]
        if is_stroked:
            rules += [self._paint("stroke", ink), f"stroke-width:{_short(width)}"]
            rules += [f"stroke-linecap:{cap}"] if (cap := CAPS[gc.get_capstyle()]) else []
            dashes: Any
            offset, dashes = gc.get_dashes()
            if dashes is not None:
                rules.append(f"stroke-dasharray:{','.join(_short(length) for length in dashes)}")
                rules += [f"stroke-dashoffset:{_short(offset)}"] if offset else []
        if forced is not None and forced != 1:
            rules.append(f"opacity:{_short(forced)}")
        return ";".join(rules)

    def _paint(self, what: str, rgba: Any) -> str:
        opacity = f";{what}-opacity:{_short(rgba[3])}" if len(rgba) > 3 and rgba[3] != 1 else ""
        return f"{what}:{self._color(to_hex(rgba[:3]))}{opacity}"

    def _font(self, prop: FontProperties) -> str:
        shape = [str(word) for word in (prop.get_style(), prop.get_weight()) if word not in ("normal", "regular", 400)]
        return f"font:{' '.join([*shape, _short(prop.get_size_in_points())])}px var(--sans,sans-serif)"

    def _class(self, style: str) -> str:
        """An attribute in place of the style; page-wide, the same style has the same class."""
        return f' class="{self._rules.setdefault(style, _name("s", style))}"'

    def _defined(self, tag: str, rest: str) -> str:
        name = _name("d", tag + rest)
        self._definitions.setdefault(name, f'<{tag} id="{name}"{rest}')
        return name

    def _clip(self, gc: GraphicsContextBase, points: Any) -> str | None:
        """An attribute where these points leave what they are clipped to; None where all are beyond it."""
        shape: Any
        transform: Any
        shape, transform = gc.get_clip_path()
        if shape is not None:
            data = _data(shape.cleaned(transform=transform + self._flip, curves=True))
            return f' clip-path="url(#{self._defined("clipPath", f"""><path d="{data}"/></clipPath>""")})"'
        rectangle = gc.get_clip_rectangle()
        if rectangle is None or not len(points):
            return ""
        box = Bbox(self._flip.transform(rectangle.get_points()))
        half = gc.get_linewidth() / 2
        (left, low), (right, high) = points.min(0) - half, points.max(0) + half
        if right < box.xmin or left > box.xmax or high < box.ymin or low > box.ymax:
            return None
        is_inside = left >= box.xmin - SLACK and right <= box.xmax + SLACK
        if is_inside and low >= box.ymin - SLACK and high <= box.ymax + SLACK:
            return ""
        sides = zip(
            ("x", "y", "width", "height"), (box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin), strict=True
        )
        inner = "".join(f' {name}="{_short(value)}"' for name, value in sides)
        return f' clip-path="url(#{self._defined("clipPath", f"><rect{inner}/></clipPath>")})"'


@lru_cache(maxsize=20_000)
def _measured(text: str, font: FontProperties, is_math: bool) -> tuple[float, float, float]:
    """Width, height and descent in points: figures of one report ask for the same texts again and again."""
    return text_to_path.get_text_width_height_descent(text, font, is_math and _is_formula(text))


@lru_cache(maxsize=20_000)
def _is_formula(text: str) -> bool:
    """Whether matplotlib can read the mathematics of a text; one that it cannot is shown as it is written."""
    try:
        text_to_path.mathtext_parser.parse(text)
    except (ValueError, RecursionError):
        return False
    return True


def _name(kind: str, content: str) -> str:
    return kind + base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())[:4].decode()


def _short(value: float) -> str:
    return _hundredths(round(float(value) * 100))


@lru_cache(maxsize=100_000)
def _hundredths(count: int) -> str:
    """That many hundredths in the fewest characters."""
    whole, part = divmod(abs(count), 100)
    digits = f"{whole or ''}" + (f".{part:02d}".rstrip("0") if part else "")
    return ("-" if count < 0 else "") + (digits or "0")


def _pair(x: int, y: int) -> str:
    second = _hundredths(y)
    return f"{_hundredths(x)}{'' if second.startswith('-') else ' '}{second}"


def _data(path: Path) -> str:
    """A path's `d`: absolute moves, everything else relative to the point before, rounded once so that it adds up."""
    points = np.rint(np.asarray(path.vertices) * 100).astype(int).tolist()
    parts: list[str] = []
    x, y = start = (0, 0)
    codes = iter(zip(np.asarray(path.codes).tolist(), points, strict=True))
    for code, (to_x, to_y) in codes:
        if code == Path.STOP:
            break
        if code == Path.MOVETO:
            start = (to_x, to_y)
            parts.append(f"M{_pair(to_x, to_y)}")
        elif code == Path.CLOSEPOLY:
            to_x, to_y = start
            parts.append("z")
        elif code == Path.LINETO:
            parts.append(_line(to_x - x, to_y - y, parts[-1]))
        else:
            controls = [(to_x, to_y), *(next(codes)[1] for _ in range(code - 2))]
            numbers = " ".join(_pair(control[0] - x, control[1] - y) for control in controls)
            parts.append(("q" if code == Path.CURVE3 else "c") + numbers)
            to_x, to_y = controls[-1]
        x, y = to_x, to_y
    return "".join(parts) if len(parts) > 1 else ""


def _places(path: Path) -> Any:
    """The points of a path; where it only ends or closes, there is none."""
    vertices, codes = np.asarray(path.vertices), np.asarray(path.codes)
    return vertices[(codes != Path.STOP) & (codes != Path.CLOSEPOLY)]


def _line(dx: int, dy: int, before: str) -> str:
    if dx and dy:
        return f"l{_pair(dx, dy)}"
    if dy:
        return f"v{_hundredths(dy)}"
    return f"h{_hundredths(dx)}" if dx or before.startswith("M") else ""  # a line of no length may be a dot
