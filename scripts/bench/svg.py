"""Draws plots as SVG: bars with whiskers, and lines with whiskers or bands.

Uses only the standard library, so the same figures give the same bytes on every machine. Every drawing has a white
background, so that it can be read on a dark page. The colours are those of Okabe and Ito, which colour-blind readers
can tell apart. Bars also carry names, and lines differ in dashes and markers.
"""

import math
import statistics
import xml.sax.saxutils

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#767676"
INK, FAINT = "#24292f", "#d8dee4"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
# The usual width of a page on a code hosting site.
WIDTH = 880
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond")


class Drawing:
    """The elements of one picture, in the order in which they are painted."""

    def __init__(self, height, title):
        self.height, self.title, self.elements = height, title, []

    def add(self, name, content=None, **attributes):
        def shown(value):
            return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        words = "".join(f" {key.replace('_', '-')}={xml.sax.saxutils.quoteattr(shown(value))}" for key, value in attributes.items())
        end = "/>" if content is None else f">{xml.sax.saxutils.escape(content)}</{name}>"
        self.elements.append(f"<{name}{words}{end}")

    def text(self, x, y, words, anchor="start", **more):
        self.add("text", words, x=float(x), y=float(y), text_anchor=anchor, **more)

    def line(self, x1, y1, x2, y2, stroke=INK, width=1.0):
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=stroke, stroke_width=float(width))

    def polygon(self, points, **more):
        self.add("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), **more)

    def polyline(self, points, stroke, dash):
        more = {"stroke_dasharray": dash} if dash else {}
        self.add("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), fill="none", stroke=stroke, stroke_width=2, **more)

    def marker(self, x, y, shape, fill):
        if shape == "circle":
            self.add("circle", cx=float(x), cy=float(y), r=4, fill=fill)
        else:
            corners = {"square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)), "triangle": ((0, -4.6), (4.4, 3.4), (-4.4, 3.4)),
                       "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0))}[shape]
            self.polygon([(x + right, y + down) for right, down in corners], fill=fill)

    def whisker(self, x1, y1, x2, y2):
        """Draws a whisker from the least sample to the greatest. Its white edge keeps it visible on a bar."""
        cap_x, cap_y = (4, 0) if x1 == x2 else (0, 4)
        for stroke, width in (("#ffffff", 3.6), (INK, 1.4)):
            self.line(x1, y1, x2, y2, stroke, width)
            for x, y in ((x1, y1), (x2, y2)):
                self.line(x - cap_x, y - cap_y, x + cap_x, y + cap_y, stroke, width)

    def save(self, path):
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" height="{self.height}" '
                f'font-family="{FONT}" font-size="13" fill="{INK}">')
        title = f"<title>{xml.sax.saxutils.escape(self.title)}</title>"
        background = f'<rect width="{WIDTH}" height="{self.height}" fill="#ffffff"/>'
        path.write_text("\n".join([head, title, background, *self.elements, "</svg>"]) + "\n")


class Scale:
    """An axis: its bounds, its ticks with their labels, and what it measures."""

    def __init__(self, name, low, high, ticks, log=False):
        self.name, self.low, self.high, self.ticks, self.log = name, low, high, ticks, log

    @classmethod
    def from_zero(cls, name, greatest, most):
        """A linear axis from 0, with at most `most` steps of a round length."""
        rough = greatest / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if rough <= factor * power)
        count = math.ceil(greatest / step)
        return cls(name, 0, count * step, [(at * step, f"{at * step:,.0f}") for at in range(count + 1)])

    def at(self, value, start, end):
        """The position of a value if the axis lies between `start` and `end`."""
        of = math.log10 if self.log else float
        return start + (of(value) - of(self.low)) / (of(self.high) - of(self.low)) * (end - start)


class Bars:
    """Horizontal bars of medians, each with its name, its whisker and its value."""

    LABEL, VALUE, STEP, BAR = 76, 72, 27, 17

    def __init__(self, title, unit, rows, label=LABEL):
        self.title, self.rows, self.label = title, rows, label
        self.scale = Scale.from_zero(unit, max(max(samples) for _, samples, _ in rows), 4)

    def height(self):
        return 28 + self.STEP * len(self.rows) + 44

    def draw(self, drawing, left, top, width):
        start, end = left + self.label, left + width - self.VALUE
        drawing.text(left, top + 14, self.title, font_weight="bold")
        first = top + 28
        bottom = first + self.STEP * len(self.rows)
        for value, label in self.scale.ticks:
            x = self.scale.at(value, start, end)
            drawing.line(x, first, x, bottom, FAINT)
            drawing.text(x, bottom + 16, label, "middle", font_size=12)
        drawing.text((start + end) / 2, bottom + 34, self.scale.name, "middle", font_size=12)
        for row, (name, samples, colour) in enumerate(self.rows):
            middle = first + self.STEP * (row + 0.5)
            median, least, most = (self.scale.at(find(samples), start, end) for find in (statistics.median, min, max))
            drawing.text(start - 8, middle + 4.5, name, "end")
            drawing.add("rect", x=float(start), y=middle - self.BAR / 2, width=median - start, height=float(self.BAR), fill=colour)
            drawing.whisker(least, middle, most, middle)
            drawing.text(most + 9, middle + 4.5, f"{statistics.median(samples):,.0f}")
        drawing.line(start, first, start, bottom)


class Series:
    """One line of a plot: its name, and for each x all samples of y."""

    def __init__(self, name, points, colour):
        self.name, self.points, self.colour = name, points, colour


class Lines:
    """Lines of medians over two axes. The legend is above the axes, never inside them.

    `spread` shows the least and the greatest sample as a "band" or as "whiskers"; None shows neither, and no markers.
    `legend_rows` reserves height, so that the axes of panels side by side begin at the same height.
    """

    LEFT, RIGHT, ROW = 72, 30, 19
    # Distance between the whiskers of two series at the same x, so that they do not overlap.
    APART = 6

    def __init__(self, title, x, y, series, spread="band", axes_height=250, legend_rows=0):
        self.title, self.x, self.y, self.series, self.spread = title, x, y, series, spread
        self.axes_height, self.legend_rows = axes_height, max(legend_rows, len(self.legend()))

    def height(self):
        return 30 + self.ROW * self.legend_rows + self.axes_height + 48

    def legend(self):
        return list(enumerate(self.series)) if len(self.series) > 1 else []

    def draw(self, drawing, left, top, width):
        start, end = left + self.LEFT, left + width - self.RIGHT
        drawing.text(left, top + 14, self.title, font_weight="bold")
        y = top + 34
        for index, each in self.legend():
            drawing.polyline([(start, y), (start + 34, y)], each.colour, DASHES[index])
            if self.spread:
                drawing.marker(start + 17, y, MARKERS[index], each.colour)
            drawing.text(start + 42, y + 4.5, each.name)
            y += self.ROW
        first = top + 30 + self.ROW * self.legend_rows
        bottom = first + self.axes_height
        self.draw_axes(drawing, left, start, end, first, bottom)
        for index, each in enumerate(self.series):
            self.draw_series(drawing, index, each, start, end, first, bottom)

    def draw_axes(self, drawing, left, start, end, first, bottom):
        for value, label in self.y.ticks:
            y = self.y.at(value, bottom, first)
            drawing.line(start, y, end, y, FAINT)
            drawing.text(start - 8, y + 4, label, "end", font_size=12)
        for value, label in self.x.ticks:
            x = self.x.at(value, start, end)
            drawing.line(x, first, x, bottom, FAINT)
            drawing.text(x, bottom + 17, label, "middle", font_size=12)
        drawing.line(start, first, start, bottom)
        drawing.line(start, bottom, end, bottom)
        drawing.text((start + end) / 2, bottom + 37, self.x.name, "middle", font_size=12)
        middle = (first + bottom) / 2
        drawing.text(left + 12, middle, self.y.name, "middle", font_size=12, transform=f"rotate(-90 {left + 12:.1f} {middle:.1f})")

    def draw_series(self, drawing, index, each, start, end, first, bottom):
        apart = self.APART * (index - (len(self.series) - 1) / 2) if self.spread == "whiskers" else 0

        def points(find):
            return [(self.x.at(x, start, end) + apart, self.y.at(find(samples), bottom, first)) for x, samples in each.points]
        medians, least, most = points(statistics.median), points(min), points(max)
        if self.spread == "band":
            drawing.polygon(least + most[::-1], fill=each.colour, fill_opacity="0.16")
        drawing.polyline(medians, each.colour, DASHES[index])
        if self.spread == "whiskers":
            for (x, low), (_, high) in zip(least, most, strict=True):
                drawing.line(x, low, x, high, each.colour, 1.6)
        if self.spread:
            for x, y in medians:
                drawing.marker(x, y, MARKERS[index], each.colour)


def figure(path, title, rows, note=""):
    """Draws panels in rows; the panels of a row share its width."""
    gap = 28
    heights = [max(panel.height() for panel in row) for row in rows]
    drawing = Drawing(round(sum(heights) + 14 * (len(rows) - 1) + 24 + (20 if note else 0)), title)
    top = 12
    for row, height in zip(rows, heights, strict=True):
        width = (WIDTH - 24 - gap * (len(row) - 1)) / len(row)
        for index, panel in enumerate(row):
            panel.draw(drawing, 12 + index * (width + gap), top, width)
        top += height + 14
    if note:
        drawing.text(12, drawing.height - 10, note, font_size=12, fill="#57606a")
    drawing.save(path)
