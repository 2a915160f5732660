"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const templates = read("templates");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const look = () => (dark.matches ? templates.dark : templates.light);
  const plots = [...document.querySelectorAll(".plot")];
  const paint = (template, size) => plots.forEach((plot) => Plotly.relayout(plot, { template, ...size }));
  // The mode bar covers the legend, and touch screens have no way to hide it.
  const displayModeBar = matchMedia("(hover: hover)").matches ? "hover" : false;
  const modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const config = { displaylogo: false, responsive: true, displayModeBar, modeBarButtons };
  for (const plot of plots) {
    const { data, layout } = read(plot.dataset.figure);
    Plotly.newPlot(plot, data, { ...layout, template: look() }, config);
  }
  dark.addEventListener("change", () => paint(look()));
  // Browsers do not lay out plots again for print: this width fits two plots side by side on A4 and Letter.
  addEventListener("beforeprint", () => paint(templates.light, { width: 335 }));
  addEventListener("afterprint", () => paint(look(), { width: null, autosize: true }));
})();
