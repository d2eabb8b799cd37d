#!/usr/bin/env python3
"""Draws accuracy over bytes from a bundle's record of outcomes, as an SVG for pages in light and dark.

    docs/img/rate-accuracy.py models/bundles/photos > docs/img/rate-accuracy.svg

The record holds, for each of the same pictures, the size and the correctness of the split network at every
operating point and of the full network on compressed pictures. Needs the program zstd.
"""

import csv
import io
import math
import pathlib
import subprocess
import sys
import tomllib

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 46, 52
BYTES = (80, 10_000)
PERCENT = (68, 98)
FAMILIES = {  # name -> (title, place of its label: bytes and percent)
    "s16": ("split, stride 16", (215, 93.6)),
    "s8": ("split, stride 8", (212, 76.8)),
    "webp": ("WebP", (2150, 93.9)),
    "jpeg": ("JPEG", (5600, 92.9)),
}


def main() -> None:
    bundle = pathlib.Path(sys.argv[1])
    manifest = tomllib.loads((bundle / "manifest.toml").read_text())
    points, full, pictures = read(bundle / "outcomes.csv.zst")
    print(draw(f"{manifest['name']} {manifest['version']}", points, full, pictures))


def read(file: pathlib.Path) -> tuple[dict[str, list[tuple[float, float, str]]], float, int]:
    """Of each family its points (mean bytes, percent right, name), how often the full network is right, pictures."""
    text = subprocess.run(["zstd", "-dc", file], capture_output=True, check=True).stdout.decode()
    sums: dict[str, list[int]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        total = sums.setdefault(row["point"], [0, 0, 0])
        for at, value in enumerate((1, int(row["bytes"]), int(row["right"]))):
            total[at] += value
    points: dict[str, list[tuple[float, float, str]]] = {family: [] for family in FAMILIES}
    for name, (count, size, right) in sums.items():
        family = name.split("/")[1 if name.startswith("image/") else 0]
        if family in points and not name.endswith("/exit"):
            points[family].append((size / count, 100 * right / count, name))
    count, _, right = sums["full"]
    return points, 100 * right / count, count


def front(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points that no other beats, by bytes."""
    best: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def x(size: float) -> float:
    low, high = map(math.log, BYTES)
    return LEFT + (math.log(size) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def y(percent: float) -> float:
    low, high = PERCENT
    return HEIGHT - BOTTOM - (percent - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def draw(title: str, points: dict[str, list[tuple[float, float, str]]], full: float, pictures: int) -> str:
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\" role=\"img\">",
        f"<title>Accuracy over bytes a picture of bundle {title}, {pictures} pictures</title>",
        "<style>",
        ":root { --ink: #1f2933; --soft: #5b6b7a; --grid: #dfe4e9; --page: #ffffff;"
        " --s16: #1f6feb; --s8: #0a8f7c; --webp: #8250df; --jpeg: #bc5a00 }",
        "@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa8b5; --grid: #333d47;"
        " --page: #0d1117; --s16: #6cb0ff; --s8: #4fd1bd; --webp: #c8a2ff; --jpeg: #ffb066 } }",
        "text { fill: var(--ink) } .soft { fill: var(--soft) } .grid { stroke: var(--grid) }",
        ".label { paint-order: stroke; stroke: var(--page); stroke-width: 5px; stroke-linejoin: round; font-weight: 600 }",
        ".page { fill: var(--page) } .mid { text-anchor: middle } .end { text-anchor: end }",
        *(
            f".{family} {{ stroke: var(--{family}); fill: none }} .{family}-fill {{ fill: var(--{family}) }}"
            for family in FAMILIES
        ),
        "</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text x="{LEFT}" y="26" font-weight="600">Right of {pictures} validation pictures, bundle {title}</text>',
    ]
    for percent in range(70, 98, 5):
        out.append(f'<path class="grid" d="M{LEFT} {y(percent):.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text class="soft end" x="{LEFT - 8}" y="{y(percent) + 4:.1f}">{percent}%</text>')
    for size in (100, 200, 500, 1000, 2000, 5000, 10_000):
        out.append(f'<path class="grid" d="M{x(size):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        out.append(f'<text class="soft mid" x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}">{size:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="soft mid" x="{middle}" y="{HEIGHT - 12}">bytes a picture, header included (logarithmic)</text>')
    out.append(f'<path d="M{LEFT} {y(full):.1f}H{WIDTH - RIGHT}" stroke="var(--soft)" stroke-dasharray="5 4"/>')
    out.append(f'<text class="soft" x="{LEFT + 6}" y="{y(full) - 6:.1f}">full network: {full:.1f}%</text>')
    for family, (label, place) in FAMILIES.items():
        best = front(points[family])
        line = "L".join(f"{x(size):.1f} {y(right):.1f}" for size, right, _ in best)
        out.append(f'<path class="{family}" stroke-width="2" d="M{line}"/>')
        for size, right, name in points[family]:
            if right < PERCENT[0]:
                continue
            kind, radius = (f"{family}-fill", 3.5) if (size, right, name) in best else (family, 2)
            faint = "" if kind.endswith("fill") else ' opacity="0.45"'
            out.append(
                f'<circle class="{kind}"{faint} cx="{x(size):.1f}" cy="{y(right):.1f}" r="{radius}">'
                f"<title>{name}: {size:.0f} B, {right:.2f}%</title></circle>"
            )
    for family, (label, place) in FAMILIES.items():
        where = f'x="{x(place[0]):.1f}" y="{y(place[1]):.1f}"'
        out.append(f'<text class="label" style="fill:var(--{family})" {where}>{label}</text>')
    return "\n".join([*out, "</svg>"])


if __name__ == "__main__":
    main()
