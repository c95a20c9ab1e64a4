"""Plotly figures of networks: one layer by layer, a front's side by side, several in rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apq_optuna.networks import Genotypes, PlacedLayer, Site, Subnet, as_pair
from apq_optuna.report.plots import BASELINE, BIT_COLOURS, DOMINATED, FRONT, layout
from apq_optuna.space import SearchSpace

KINDS = {
    "depthwise": BASELINE,
    "pointwise": FRONT,
    "convolution": "#7b3294",
    "fixed": DOMINATED,
}
"""Colour of each kind of layer."""


def network_figure(subnet: Subnet, title: str = "") -> go.Figure:
    """Channels and bits of one network, layer by layer.

    Bars are output channels; the two rows below are weight and activation bits.
    """
    layers = list(subnet.layers())
    names = shortened([placed.name for placed in layers])
    figure = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.05
    )
    present = dict.fromkeys(_kind(placed) for placed in layers)
    for kind, colour in KINDS.items():
        if kind not in present:
            continue
        chosen = [i for i, placed in enumerate(layers) if _kind(placed) == kind]
        figure.add_bar(
            x=[names[i] for i in chosen], y=[layers[i].layer.out_channels for i in chosen],
            name=kind, marker={"color": colour},
            customdata=[
                [p.layer.kernel_size, p.layer.in_channels, p.w_bits, p.a_bits, p.layer.macs / 1e6,
                 p.name]
                for p in (layers[i] for i in chosen)
            ],
            hovertemplate="%{customdata[5]}: %{customdata[1]} → %{y} channels, kernel "
            "%{customdata[0]}<br>W%{customdata[2]}A%{customdata[3]}, "
            "%{customdata[4]:.3f} MMACs<extra></extra>",
            row=1, col=1,
        )  # fmt: skip
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    bits = [[p.w_bits for p in layers], [p.a_bits for p in layers]]
    figure.add_heatmap(
        x=names, y=["weight bits", "activation bits"], z=bits, text=bits,
        customdata=[[p.name for p in layers]] * 2,
        texttemplate="%{text}", textfont={"size": 10}, zmin=2, zmax=8, colorscale=BIT_COLOURS,
        showscale=False, hovertemplate="%{customdata}: %{z} %{y}<extra></extra>",
        xgap=1, ygap=1, row=2, col=1,
    )  # fmt: skip
    figure.update_yaxes(title_text="output channels", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_xaxes(tickangle=-60, tickfont={"size": 10}, row=2, col=1)
    figure.update_layout(barmode="overlay")
    figure = layout(figure, title or "Network", 560)
    figure.update_layout(
        legend={"x": 1, "xanchor": "right", "yref": "paper", "y": 1.02},
        margin={"t": 90},
    )
    return figure


def policy_figure(space: SearchSpace, networks: Sequence[tuple[int, Genotypes]]) -> go.Figure:
    """The front's networks side by side: mean bits of what belongs together, a column each.

    Args:
        space: Their joint space.
        networks: (trial number, genotype) of the front, most accurate first.
    """
    groups = _groups(space, "bits", "channels")
    names = shortened(list(groups))
    rows = np.stack([row for _, row in networks])
    active = space.active(rows)
    z = np.full((len(networks), len(names)), np.nan)
    text = np.full(z.shape, "", object)
    for column, members in enumerate(groups.values()):
        for place, row in enumerate(rows):
            on = [c for c in members if active[place, c]]
            chosen = {c: space.decisions[c].choices[row[c]] for c in on}
            bits = [chosen[c] for c in on if space.decisions[c].quantization]
            if bits:
                z[place, column] = np.mean(bits)
            text[place, column] = " ".join(_shape(space, chosen))
    figure = go.Figure()
    figure.add_heatmap(
        x=names, y=[f"trial {number}" for number, _ in networks], z=z, text=text,
        customdata=[list(groups)] * len(networks),
        texttemplate="%{text}" if len(names) <= 13 else None, textfont={"size": 9},
        zmin=2, zmax=8, colorscale=BIT_COLOURS, colorbar={"title": "mean bits"},
        hovertemplate="%{y}, %{customdata}: %{z:.1f} bits, %{text}<extra></extra>", xgap=1, ygap=1,
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category")
    kernels = any(decision.role == "kernel" for decision in space.decisions)
    title = f"Networks on the front: bits (colour), channels{' and kernel' if kernels else ''}"
    layout(figure, title, 160 + 26 * len(networks), right=170)
    return figure.update_layout(margin={"b": 50})


def groups_with_bits(space: SearchSpace) -> dict[str, list[int]]:
    """Columns of the decisions that belong together, by group, where bit-widths are among them."""
    return _groups(space, "bits")


def _groups(space: SearchSpace, *roles: str) -> dict[str, list[int]]:
    """Columns of the decisions that belong together, by group, where a role is among them."""
    groups: dict[str, list[int]] = {}
    for column, decision in enumerate(space.decisions):
        groups.setdefault(decision.group or decision.name, []).append(column)
    return {
        name: columns
        for name, columns in groups.items()
        if any(space.decisions[c].role in roles for c in columns)
    }


def _shape(space: SearchSpace, chosen: Mapping[int, Any]) -> Iterator[str]:
    """Channels and kernel of a group, as far as they are choices."""
    for column in sorted(chosen, key=lambda c: space.decisions[c].role):
        role = space.decisions[column].role
        if role == "channels":
            yield f"{chosen[column]}ch"
        elif role == "kernel":
            yield f"k{chosen[column]}"


def shortened(names: Sequence[str]) -> list[str]:
    """Names with numbered words cut to their first letter (`conv2.part1` is `c2.p1`), as long as
    they stay apart."""
    short = [re.sub(r"([A-Za-z])[A-Za-z]+(?=\d)", r"\1", name) for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _kind(placed: PlacedLayer) -> str:
    if not placed.searched:
        return "fixed"
    if placed.layer.depthwise:
        return "depthwise"
    return "pointwise" if set(as_pair(placed.layer.kernel_size)) == {1} else "convolution"


def networks_figure(space: SearchSpace, networks: Sequence[tuple[str, Genotypes]]) -> go.Figure:
    """Networks in rows: bars for what belongs together, one for each pair of bit-widths in it.

    A bar's height is the channels, its colour the bits.

    Args:
        space: Their joint space.
        networks: (title, genotype).
    """
    groups = groups_with_bits(space)
    figure = make_subplots(
        len(networks), 1, shared_xaxes=True, vertical_spacing=0.09,
        subplot_titles=[title for title, _ in networks],
    )  # fmt: skip
    bars = [_bars(space, groups, genotype) for _, genotype in networks]
    highest = max(bar["y"] for each in bars for bar in each)
    for row, each in enumerate(bars, 1):
        columns = {key: [bar[key] for bar in each] for key in each[0]}
        figure.add_bar(
            x=columns["x"], y=columns["y"], width=columns["width"], text=columns["text"],
            hovertext=columns["hover"], hoverinfo="text", textposition="outside",
            showlegend=False, textfont={"size": 10}, cliponaxis=False,
            marker={"color": columns["bits"], "colorscale": BIT_COLOURS, "cmin": 2, "cmax": 8,
                    "showscale": row == 1, "colorbar": {"title": "bits"}},
            row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title_text="channels", range=[0, 1.35 * highest], row=row, col=1)
        figure.update_xaxes(
            tickvals=list(range(len(groups))), ticktext=shortened(list(groups)),
            range=[-0.6, len(groups) - 0.4], showticklabels=True, row=row, col=1,
        )  # fmt: skip
    layout(figure, "Weight/activation bits of each layer, kernel", 130 + 250 * len(networks),
           right=150)  # fmt: skip
    figure.update_layout(margin={"t": 100})
    return figure


def _bars(
    space: SearchSpace, groups: Mapping[str, Sequence[int]], genotype: Genotypes
) -> list[dict[str, Any]]:
    """A bar for each pair of bit-widths of each group, over the group's place."""
    sites = [site for site in space.networks.sites() if site.bit_columns]
    active = space.active(genotype[None])[0]
    found: list[dict[str, Any]] = []
    for place, members in enumerate(groups.values()):
        own = [site for site in sites if set(site.bit_columns) & set(members)]
        pairs: dict[tuple[int, ...], Site] = {}
        for site in own:
            pairs.setdefault(site.bit_columns, site)  # the first of each pair
        for i, (columns, site) in enumerate(pairs.items()):
            if not active[columns[0]]:
                continue
            layer = site.layer_of(site.sizes(genotype[None])[0])
            w, a = (
                width.bits[0 if width.column is None else int(genotype[width.column])]
                for width in (site.w_bits, site.a_bits)
            )
            kernel = as_pair(layer.kernel_size)[0]
            share = 0.8 / len(pairs)
            found.append(
                {
                    "x": place + share * (i - (len(pairs) - 1) / 2),
                    "y": layer.out_channels,
                    "width": 0.95 * share,
                    "bits": (w + a) / 2,
                    "text": f"{w}/{a}" + (f"<br>k{kernel}" if kernel > 1 else ""),
                    "hover": f"{site.name}: {layer.out_channels} channels, W{w}A{a}",
                }
            )
    return found
