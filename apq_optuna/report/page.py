"""Figures in HTML that needs no network: plotly's code once, compressed, unpacked by the browser.

Plotly's code is 4.6 MB, and 1.8 MB compressed and in letters. `DecompressionStream`, which every
browser has had since 2023, unpacks it; the figures are drawn as soon as it is there.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_LOADER = """
<script>
window.plotlyReady = (async () => {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old to unpack the figures (DecompressionStream)");
  }
  const letters = atob(document.getElementById("plotly-packed").textContent);
  const bytes = Uint8Array.from(letters, letter => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.appendChild(script);
})();
window.drawFigure = (id, figure) => window.plotlyReady.then(
  () => Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displaylogo: false}),
  error => { document.getElementById(id).textContent = error.message; });
</script>
"""


@cache
def plotting_script() -> str:
    """What a page needs once, before its first figure."""
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()
    return f"<script type='text/plain' id='plotly-packed'>{packed}</script>{_LOADER}"


def figure_div(name: str, figure: go.Figure) -> str:
    """A figure's place, and the script that draws it there.

    Args:
        name: Id of the place.
        figure: What is drawn.
    """
    told = figure.to_json().replace("</", "<\\/")  # no text in it ends the script
    height = figure.layout.height or 450
    place = f"<div id={json.dumps(name)} style='min-height:{height}px'></div>"
    return f"{place}<script>drawFigure({json.dumps(name)}, {told});</script>"
