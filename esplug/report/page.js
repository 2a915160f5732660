"use strict";
(() => {
  const HEIGHT = 250, TOP = 24, RIGHT = 12, BOTTOM = 38;
  const DASHES = ["", "7 4", "2 3", "7 3 2 3"];
  const smoothing = document.getElementById("smoothing");
  const weightOf = (line) => (line.evaluated || line.x.length <= 2 ? 0 : Number(smoothing.value));

  const add = (parent, name, attributes = {}, text = "") => {
    const svg = parent.namespaceURI.endsWith("svg") || name === "svg";
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return parent.appendChild(made);
  };
  const swatch = (parent, item) => {
    const svg = add(parent, "svg", { viewBox: "0 0 16 8", "aria-hidden": "true", class: "swatch" });
    const line = { d: "M0 4H16", stroke: item.colour, "stroke-width": 3, "stroke-dasharray": DASHES[item.dash] };
    if ("dash" in item) add(svg, "path", line);
    else add(svg, "rect", { x: 4, width: 8, height: 8, fill: item.colour });
  };
  const shown = (value) =>
    Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));

  // Debiased exponential moving average, as esplug.report.plots.Line.smoothed.
  const smoothed = (y, weight) => {
    let total = 0, count = 0;
    return y.map((value) => {
      total = weight * total + value;
      count = weight * count + 1;
      return total / count;
    });
  };

  const ticks = (low, high, most, least) => {
    const raw = (high - low) / Math.max(most, 1), power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(least, power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999));
    const first = Math.ceil(low / step - 1e-9);
    const found = Array.from({ length: 40 }, (_, i) => (first + i) * step);
    return found.filter((tick) => tick <= high + 1e-9 * step);
  };

  const stacked = ({ x, bars }) => {
    const tops = x.map(() => 0);
    return bars.map((part) => part.y.map((value, i) => [tops[i], (tops[i] += value ?? 0)]));
  };

  const ranges = (drawing, lines, stacks) => {
    const steps = [...drawing.x, ...lines.flatMap((line) => line.x)];
    const bounds = [...stacks.flat(2), ...lines.flatMap((line) => [...line.y, ...line.low, ...line.high])];
    // Not Math.min(...steps), which has a limit of arguments.
    const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
    const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
    const last = most(steps), half = drawing.x.length ? pitch(drawing.x) / 2 : 0;
    const x = [Math.min(0, least(steps)) - half, Math.max(last, 1) + half];
    let [low, high] = bounds.length ? [least(bounds), most(bounds)] : [0, 1];
    const pad = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
    return { x, y: drawing.bars.length ? [0, high * 1.04 || 1] : [low - pad, high + pad] };
  };
  const pitch = (x) => (x.length > 1 ? x[1] - x[0] : 1);

  const draw = (plot) => {
    const { drawing, hidden } = plot;
    const width = plot.box.clientWidth;
    const lines = drawing.lines.filter((line) => !hidden.has(line.label));
    const bars = drawing.bars.filter((part) => !hidden.has(part.label));
    const stacks = stacked({ x: drawing.x, bars });
    const range = ranges(drawing, lines, stacks), least = 10 ** -12;
    const yTicks = ticks(...range.y, HEIGHT / 50, least);
    const left = 14 + 7.5 * Math.max(...yTicks.map((tick) => shown(tick).length));
    const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
    const toX = scale(range.x, left, width - RIGHT), toY = scale(range.y, HEIGHT - BOTTOM, TOP);
    plot.svg?.remove();
    const svg = plot.svg = add(plot.box, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    add(svg, "text", { x: 0, y: 12, class: "unit" }, drawing.unit);
    add(svg, "text", { x: (left + width - RIGHT) / 2, y: HEIGHT - 4, class: "middle" }, "iteration");
    for (const tick of yTicks) {
      add(svg, "path", { d: `M${left} ${toY(tick)}H${width - RIGHT}`, class: "grid" });
      add(svg, "text", { x: left - 6, y: toY(tick) + 4, class: "end" }, shown(tick));
    }
    for (const tick of ticks(...range.x, width / 90, 1)) {
      if (tick >= 0) add(svg, "text", { x: toX(tick), y: HEIGHT - BOTTOM + 16, class: "middle" }, shown(tick));
    }
    bars.forEach((part, index) => drawBars(svg, part, stacks[index], drawing.x, toX, toY));
    for (const line of lines) drawLine(svg, line, toX, toY);
    plot.scale = { toX, toY, lines, bars };
    plot.cursor = add(svg, "path", { class: "cursor" });
    point(plot, steps(plot).includes(plot.step) ? plot.step : null);
  };

  const drawBars = (svg, part, spans, x, toX, toY) => {
    const half = ((toX(pitch(x)) - toX(0)) / 2) * (x.length > 60 ? 1 : 0.85);
    const d = spans.map(([low, high], i) =>
      high > low ? `M${toX(x[i]) - half} ${toY(low)}h${2 * half}V${toY(high)}h${-2 * half}z` : "");
    add(svg, "path", { d: d.join(""), fill: part.colour });
  };

  const drawLine = (svg, line, toX, toY) => {
    const path = (y) => y.map((value, i) => `${i ? "L" : "M"}${toX(line.x[i]).toFixed(1)} ${toY(value).toFixed(1)}`);
    const stroke = { stroke: line.colour, class: "line", "stroke-dasharray": DASHES[line.dash] };
    if (line.x.length > 2) {
      if (line.low.length) {
        const back = path(line.low).map((end) => `L${end.slice(1)}`).reverse();
        add(svg, "path", { d: `${path(line.high).join("")}${back.join("")}z`, fill: line.colour, class: "band" });
      }
      const weight = weightOf(line);
      add(svg, "path", { d: path(line.y).join(""), ...stroke, class: weight ? "line raw" : "line" });
      if (weight) add(svg, "path", { d: path(smoothed(line.y, weight)).join(""), ...stroke, class: "line smoothed" });
    } else {
      // Two measurements are no trend: points with error bars.
      for (const i of line.low.keys()) {
        const ends = `M-5 ${toY(line.low[i])}h10m-5 0V${toY(line.high[i])}m-5 0h10`;
        add(svg, "path", { d: ends, ...stroke, transform: `translate(${toX(line.x[i])})`, class: "line interval" });
      }
    }
    if (line.evaluated || line.x.length <= 2) {
      line.x.forEach((x, i) => add(svg, "circle", { cx: toX(x), cy: toY(line.y[i]), r: 3.5, fill: line.colour }));
    }
  };

  // Show the values at a step, and a line there; none for null.
  const point = (plot, step) => {
    const { toX, lines, bars } = plot.scale;
    plot.step = step;
    plot.tip.hidden = step === null;
    plot.cursor.setAttribute("d", step === null ? "" : `M${toX(step)} ${TOP}V${HEIGHT - BOTTOM}`);
    if (step === null) return;
    plot.tip.replaceChildren();
    add(plot.tip, "strong", {}, `iteration ${shown(step)}`);
    const row = (item, text) => {
      const made = add(plot.tip, "div");
      swatch(made, item);
      made.append(`${item.label} ${text}`);
    };
    for (const line of lines) {
      const i = line.x.indexOf(step);
      if (i < 0) continue;
      const weight = weightOf(line);
      const interval = line.low.length ? ` [${shown(line.low[i])}, ${shown(line.high[i])}]` : "";
      row(line, shown(line.y[i]) + interval + (weight ? `, smoothed ${shown(smoothed(line.y, weight)[i])}` : ""));
    }
    for (const part of bars) {
      const value = part.y[plot.drawing.x.indexOf(step)];
      if (value) row(part, `${shown(value)} ${plot.drawing.short}`);
    }
    const right = toX(step) > plot.box.clientWidth / 2;
    plot.tip.style.left = right ? "" : `${toX(step) + 10}px`;
    plot.tip.style.right = right ? `${plot.box.clientWidth - toX(step) + 10}px` : "";
  };

  const steps = ({ drawing, scale }) =>
    [...new Set([...drawing.x, ...scale.lines.flatMap((line) => line.x)])].sort((a, b) => a - b);

  // Read a figure's data, make its legend, and draw it.
  const fill = (plot) => {
    plot.source = document.getElementById(plot.box.dataset.figure).textContent;
    plot.drawing = JSON.parse(plot.source);
    const items = [...plot.drawing.lines, ...plot.drawing.bars];
    const legend = plot.box.parentElement.querySelector(".legend");
    legend.replaceChildren();
    for (const item of items.length > 1 ? items : []) {
      const button = add(legend, "button", { type: "button", "aria-pressed": !plot.hidden.has(item.label) });
      swatch(button, item);
      button.append(item.label);
      button.addEventListener("click", () => {
        if (!plot.hidden.delete(item.label)) plot.hidden.add(item.label);
        button.setAttribute("aria-pressed", !plot.hidden.has(item.label));
        draw(plot);
      });
    }
    draw(plot);
  };

  const start = (box) => {
    const plot = { box, hidden: new Set(), step: null };
    plot.tip = add(box, "div", { class: "tip", role: "status", hidden: "" });
    fill(plot);
    const nearest = (event) => {
      const at = event.clientX - box.getBoundingClientRect().left, all = steps(plot);
      if (all.length) point(plot, all.reduce((a, b) =>
        Math.abs(plot.scale.toX(b) - at) < Math.abs(plot.scale.toX(a) - at) ? b : a));
    };
    box.addEventListener("pointermove", nearest);
    box.addEventListener("pointerdown", nearest);
    box.addEventListener("pointerleave", () => point(plot, null));
    box.addEventListener("blur", () => point(plot, null));
    box.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key], all = steps(plot);
      if (event.key === "Escape") point(plot, null);
      if (!move || !all.length) return;
      event.preventDefault();
      const next = plot.step === null ? (move > 0 ? 0 : all.length - 1) : all.indexOf(plot.step) + move;
      point(plot, all[Math.max(0, Math.min(all.length - 1, next))]);
    });
    new ResizeObserver(() => draw(plot)).observe(box);
    return plot;
  };

  // Draw all figures, or those whose data live.js has changed.
  let plots = [];
  const show = () => {
    plots = [...document.querySelectorAll(".plot")].map((box) => {
      const plot = plots.find((each) => each.box === box);
      if (plot && plot.source !== document.getElementById(box.dataset.figure).textContent) fill(plot);
      return plot ?? start(box);
    });
  };
  document.addEventListener("report", show);
  show();
  smoothing.addEventListener("input", () => {
    document.getElementById("weight").textContent = smoothing.value;
    plots.forEach(draw);
  });
})();
