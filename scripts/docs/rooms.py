"""The picture and the table of rooms in docs/data-flow.md, drawn from the imports of ``src/unike``.

python scripts/docs/rooms.py            # draws both anew
python scripts/docs/rooms.py --check    # ends with exit code 1 if they are not what the imports say

A room is a package (and ``api.py``). What runs only when a function is called, and what only the type checker reads,
counts too: the picture is of everything that a file names.
"""

import ast
import re
from collections import defaultdict
from html import escape
from pathlib import Path

import between

PICTURE = between.ROOT / "docs" / "rooms.svg"
PAGE = between.ROOT / "docs" / "data-flow.md"
COMMAND = "python scripts/docs/rooms.py"
BEGIN, END = f"<!-- rooms: {COMMAND} -->", "<!-- end of rooms -->"

API = "api"
LEFT_OUT = ("", "__main__")
"""What names the public things, and what starts the command line."""

STEP_X, STEP_Y, BOX, HIGH, SPARE = 41, 33, 148, 22, 26

Graph = dict[str, set[str]]
"""Room to the rooms it imports."""


def files(source: Path) -> dict[str, Path]:
    """Dotted module to its file."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str, path: Path) -> str:
    """``editors/unike`` of ``unike.editors.unike.gate``."""
    parts = module.split(".")[1:]
    if parts == [API] or parts == ["__main__"]:
        return parts[0]
    return "/".join(parts if path.name == "__init__.py" else parts[:-1])


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in full}
    return found & modules.keys()


def graph_of(source: Path) -> Graph:
    """Every room with what it imports, but for itself."""
    modules = files(source)
    rooms: Graph = defaultdict(set)
    for module, path in modules.items():
        room = room_of(module, path)
        if room not in LEFT_OUT:
            rooms[room] |= {room_of(name, modules[name]) for name in imports_of(path, modules)} - {room, *LEFT_OUT}
    return dict(rooms)


def ordered(graph: Graph) -> list[str]:
    """From the top to the bottom, so that arrows go down; rooms within a room stay together."""
    outer: Graph = defaultdict(set)
    for room, others in graph.items():
        outer[outer_of(room)] |= {outer_of(other) for other in others} - {outer_of(room)}
    found = []
    for house in unloaded(dict(outer)):
        inner = {room for room in graph if outer_of(room) == house}
        found += unloaded({room: graph[room] & inner for room in inner})
    return found


def outer_of(room: str) -> str:
    return room.split("/")[0]


def unloaded(graph: Graph) -> list[str]:
    """Always next the room that fewest of those left import; of these the one that imports most."""
    left, found = set(graph), []
    while left:
        loads = {room: sum(room in graph[other] for other in left) for room in left}
        found.append(min(left, key=lambda room: (loads[room], -len(graph[room] & left), room)))
        left.remove(found[-1])
    return found


# ---------------------------------------------------------------------- the picture

STYLE = """
    .page { fill: #fbfaf7; stroke: #e4e0d6; }
    .room { fill: #e6eef7; stroke: #86a5c8; stroke-width: 1.5; }
    .inner { fill: #ffffff; stroke: #b9b3a5; stroke-width: 1.5; }
    .name { fill: #23211c; font-size: 12.5px; text-anchor: middle; }
    .note { fill: #5f5a4f; font-size: 13px; }
    .arrow { fill: none; stroke: #8f897b; stroke-width: 1.2; }
    .corner, .tip { fill: #6d675a; }
    .back { fill: none; stroke: #c96f1a; stroke-width: 1.8; stroke-dasharray: 4 3; }
    .backtip { fill: #c96f1a; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #191a1d; stroke: #33353a; }
      .room { fill: #1c2a3a; stroke: #4c7099; }
      .inner { fill: #24262a; stroke: #666a73; }
      .name { fill: #ecebe7; }
      .note { fill: #aaa69c; }
      .arrow { stroke: #74777d; }
      .corner, .tip { fill: #9b978d; }
      .back { stroke: #eb9a4b; }
      .backtip { fill: #eb9a4b; }
    }
"""


def picture(graph: Graph) -> str:
    """Rooms on a diagonal: a line leaves its room to the right, and turns down at a dot to each room it imports."""
    rooms = ordered(graph)
    at = {room: (BOX + SPARE + STEP_X * n, SPARE + HIGH // 2 + STEP_Y * n) for n, room in enumerate(rooms)}
    width = at[rooms[-1]][0] + SPARE
    height = at[rooms[-1]][1] + HIGH // 2 + SPARE
    columns = {room: at[room][0] - 10 for room in rooms}
    ways, dots, boxes = [], [], []
    for room in rooms:
        x, y = at[room]
        below = [other for other in rooms if other in graph[room] and at[other][1] > y]
        above = [other for other in rooms if other in graph[room] and at[other][1] < y]
        from_above = [at[other][1] for other in rooms if room in graph[other] and at[other][1] < y]
        if below:
            ways.append(f'<path class="arrow" d="M{x} {y}H{max(columns[other] for other in below)}"/>')
        if from_above:
            down = f"M{columns[room]} {min(from_above)}V{y - HIGH // 2 - 1}"
            ways.append(f'<path class="arrow" d="{down}" marker-end="url(#tip)"/>')
        for other in above:
            up = f"M{columns[other]} {y - HIGH // 2}V{at[other][1] + HIGH // 2 + 1}"
            ways.append(f'<path class="back" d="{up}" marker-end="url(#backtip)"/>')
        dots += [f'<circle class="corner" cx="{columns[other]}" cy="{y}" r="2.8"/>' for other in below]
        kind = "inner" if "/" in room else "room"
        boxes.append(
            f'<rect class="{kind}" x="{x - BOX}" y="{y - HIGH // 2}" width="{BOX}" height="{HIGH}" rx="6"/>'
            f'<text class="name" x="{x - BOX // 2}" y="{y + 4}">{escape(room)}</text>'
        )
    said = [
        "A room's line runs to the right; at each dot it turns down",
        "to a room that is imported. A crossing without a dot is none.",
        "Orange and upwards: only within one room.",
    ]
    notes = [f'<text class="note" x="{SPARE}" y="{height - 72 + 20 * n}">{text}</text>' for n, text in enumerate(said)]
    body = "\n  ".join([*ways, *dots, *boxes, *notes])
    described = "; ".join(f"{room} imports {', '.join(sorted(graph[room])) or 'nothing'}" for room in rooms)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
role="img" aria-labelledby="title desc" font-family="ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif">
  <title id="title">The rooms of unike and what imports what</title>
  <desc id="desc">{escape(described)}.</desc>
  <style>{STYLE}  </style>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">\
<path class="tip" d="M0 0 10 5 0 10z"/></marker>
    <marker id="backtip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">\
<path class="backtip" d="M0 0 10 5 0 10z"/></marker>
  </defs>
  <rect class="page" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="14"/>
  {body}
</svg>
"""


# ---------------------------------------------------------------------- the table


def table(graph: Graph, source: Path) -> str:
    """Rooms from the top to the bottom, with the first sentence that each says of itself."""
    lines = [f"| `{room}` | {says(source, room)} |" for room in ordered(graph)]
    return "\n".join(["| room | what it is for |", "|---|---|", *lines])


def says(source: Path, room: str) -> str:
    """The first sentence of a room's docstring."""
    path = source / f"{room}.py" if room == API else source / room / "__init__.py"
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.sub(r"(?<=[\w)`])\.( .*)?$", "", text, count=1).replace("|", "\\|").replace("``", "`")


def drawn(source: Path = between.ROOT / "src" / "unike") -> dict[Path, str]:
    """What the picture and the page should be."""
    graph = graph_of(source)
    return {PICTURE: picture(graph), PAGE: between.put(PAGE, BEGIN, END, table(graph, source))}


def main() -> None:
    between.write(drawn(), COMMAND)


if __name__ == "__main__":
    main()
