"""How contenders are drawn: the same colour, mark and place in every plot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.contenders import plain

from .readings import Cell


class Look(NamedTuple):
    """How a contender is drawn."""

    colour: str
    marker: str
    dashes: str = "-"
    width: float = 1.4


LOOKS: dict[str, Look] = {
    "ubatch": Look("#0072b2", "o", width=2.4),
    "ubatch.aio": Look("#004c78", "D", (0, (4, 1.2)), width=2.4),  # type: ignore[arg-type]
    "ubatch timeout=0": Look("#0072b2", "", (0, (1, 1.5)), 1.2),  # type: ignore[arg-type]
    "ubatch timeout=0.01": Look("#0072b2", "", (0, (5, 2)), 1.0),  # type: ignore[arg-type]
    "ubatch 1.0.0": Look("#56b4e9", "s"),
    "batched": Look("#d55e00", "^"),
    "async-batcher": Look("#009e73", "v"),
    "aqueduct": Look("#cc79a7", "P"),
    "none": Look("#7f7f7f", "X"),
    "bare loop": Look("#000000", "", ":", 1.1),
    "bare chain": Look("#000000", "", "--", 1.1),
}
"""In the order of every plot. The palette is Okabe and Ito's, which colour-blind readers tell apart."""

OTHER = Look("#a6761d", "*")

HANDLERS = {"gpu": "gpu: 5 ms + 0.1 ms per item", "cpu": "cpu: 0.5 ms + 0.4 ms per item"}
HANDLERS |= {"net": "net: 20 ms + 0.05 ms per item"}

FACES = {"threads": "from threads", "tasks": "from tasks of one event loop", "greenlets": "from greenlets"}

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.fonttype": "none",
}


def look(name: str) -> Look:
    """How a contender is drawn; copies and others alike."""
    return LOOKS.get(plain(name), OTHER)


def in_order(names: Iterable[str]) -> list[str]:
    """Contenders in the order of all plots, each once; unknown ones at the end."""
    places = {name: place for place, name in enumerate(LOOKS)}
    return sorted(dict.fromkeys(names), key=lambda name: places.get(plain(name), len(places)))


def measured(cells: Iterable[Cell], figure: str, face: str | None = None) -> list[str]:
    """Who has that figure in one of the cells, in order; only those called by that face."""
    names = [
        name
        for cell in cells
        for name, entry in cell.entries.items()
        if plain(name) in LOOKS and face in (None, cell.face(name)) and entry.column(figure)
    ]
    return in_order(names)
