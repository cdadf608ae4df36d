"use strict";
// The charts, by plotly. Colours are Okabe and Ito's, which people who cannot tell red from green can tell apart, and
// every colour has a mark and a dash of its own.

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"];
const MARKS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid"];
const BEST = "#e69f00";
const SELECTED = "#cc79a7";
const STAR = `M${Array.from({ length: 10 }, (_, i) => [i % 2 ? 4 : 9.5, (i * Math.PI) / 5]).map(([r, a]) => `${r * Math.sin(a)},${r * Math.cos(a)}`).join("L")}Z`;
// showSendToCloud: a button that uploads the chart, which nobody expects of a page that needs no network
const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const STILL = { ...CONFIG, displayModeBar: false };
const pick = (list, index) => list[index % list.length];

// Plotly reads tags in its texts.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function layout(x, y, more = {}) {
  const axis = (title) => ({ title: { text: plain(title) }, zeroline: false, automargin: true, ...(more.axis ?? {}) });
  return {
    xaxis: { ...axis(x), ...more.x },
    yaxis: { ...axis(y), ...more.y },
    margin: { l: 10, r: 10, t: 10, b: 10 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: "system-ui, sans-serif", size: innerWidth < 600 ? 11 : 13 },
    modebar: { orientation: "v" },
    legend: { orientation: "h", yanchor: "bottom", y: 1.01, xanchor: "left", x: 0 },
    hovermode: "closest",
    hoverlabel: { bgcolor: "#1b1f24" },
    dragmode: false,
    showlegend: true,
    ...more.layout,
  };
}

// Ticks of what is counted: at whole numbers.
function whole(values) {
  const span = Math.max(...values) - Math.min(...values);
  return span < 8 ? { dtick: 1, tickformat: "d" } : { tickformat: ",d" };
}

const scoreTitle = (report) => report.score.name + (report.score.percent ? " on held-out images (%)" : "");
const scoreOf = (report, index) => report.candidates.score[index] * (report.score.percent ? 100 : 1);

// Everything evaluated, the front of each group with its uncertainty, what was measured, the limit and the choice.
function drawFront(target, report, axis, state) {
  const { candidates, groups } = report;
  const costs = candidates.costs[axis];
  const errors = candidates.errors[axis];
  const trace = (indices, more) => ({
    type: "scatter",
    x: indices.map((index) => costs[index]),
    y: indices.map((index) => scoreOf(report, index)),
    customdata: indices,
    text: indices.map((index) => hoverOf(index).map(plain).join("<br>")),
    hovertemplate: "%{text}<extra></extra>",
    ...more,
  });
  const all = costs.map((_, index) => index).filter((index) => costs[index] !== null);
  const traces = [
    trace(all, { name: `${all.length} evaluated`, mode: "markers", marker: { size: 5, color: "#8c959f", opacity: 0.55 } }),
  ];
  const asGood = report.fronts[axis].filter((index) => candidates.as_good[index] === "yes");
  if (asGood.length) {
    const marker = { size: 24, color: "#56b4e9", opacity: 0.35 };
    traces.push(trace(asGood, { name: "cannot be told apart from the best", mode: "markers", marker, hoverinfo: "skip", hovertemplate: undefined }));
  }
  groups.forEach((group, g) => {
    const front = report.group_fronts[axis][g];
    const colour = pick(COLOURS, g);
    const bars = { color: colour, thickness: 1, width: 3 };
    const intervals = front.map((index) => candidates.interval[index]);
    const scale = report.score.percent ? 100 : 1;
    traces.push(
      trace(front, {
        name: plain(groups.length > 1 ? `front of ${group}` : "Pareto front (95 % intervals)"),
        mode: "lines+markers",
        line: { color: colour, dash: pick(DASHES, g), width: 2, shape: "hv" },
        marker: { size: 9, color: colour, symbol: pick(MARKS, g) },
        error_y: !intervals.some(Boolean) ? null : {
          type: "data",
          symmetric: false,
          array: front.map((index, i) => (intervals[i] ? scale * (intervals[i][1] - candidates.score[index]) : 0)),
          arrayminus: front.map((index, i) => (intervals[i] ? scale * (candidates.score[index] - intervals[i][0]) : 0)),
          ...bars,
        },
        error_x: errors && { type: "data", array: front.map((index) => 1.96 * (errors[index] ?? 0)), ...bars },
      }),
    );
  });
  const measured = Object.entries(candidates.measured[axis]).filter(([index]) => report.fronts[axis].includes(Number(index)));
  if (measured.length) {
    traces.push(
      trace(measured.map(([index]) => Number(index)), {
        name: "measured",
        x: measured.map(([, value]) => value),
        mode: "markers",
        marker: { size: 11, color: "#d55e00", symbol: "x-thin", line: { width: 2, color: "#d55e00" } },
      }),
    );
  }
  const key = (name, marker) => ({ type: "scatter", name, mode: "markers", x: [null], y: [null], marker, hoverinfo: "skip" });
  traces.push(
    key("best under the limit", { size: 14, symbol: "star", color: BEST, line: { width: 1, color: "#1b1f24" } }),
    key("selected", { size: 14, symbol: "circle-open", color: SELECTED, line: { width: 3 } }),
  );
  const ends = report.group_fronts[axis].flat().flatMap((index) => candidates.interval[index] ?? []); // none is cut off
  const scaled = ends.map((end) => (report.score.percent ? 100 : 1) * end);
  const low = Math.min(quantile(all.map((index) => scoreOf(report, index)), 0.05), ...scaled);
  const high = Math.max(...all.map((index) => scoreOf(report, index)), ...scaled);
  const { name, unit } = report.axes[axis];
  const range = [low - 0.08 * (high - low || 1), high + 0.08 * (high - low || 1)];
  const title = unit ? `predicted latency (${unit})` : name.replaceAll("_", " ");
  const more = { y: { range }, x: { rangemode: "tozero" }, layout: { shapes: marks(report, axis, state) } };
  Plotly.react(target, traces, layout(title, scoreTitle(report), more), CONFIG);
}

// The limit as a line, a star on the best within it, and a ring around the selected one: shapes, because plotly moves
// these without drawing all the points anew.
// Below them a band, which holds what cannot be told apart from the best within the limit, and other limits of searches.
function marks(report, axis, state) {
  const { best, selected, limit } = state;
  const shape = (index, path, more) => ({
    type: "path", path, xsizemode: "pixel", ysizemode: "pixel",
    xanchor: report.candidates.costs[axis][index], yanchor: scoreOf(report, index), ...more,
  });
  const upright = (at, line) => ({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: "#8c959f", ...line } });
  const shapes = [upright(limit, { dash: "dash", width: 1.5 }), ...limitsOf(report, axis).map(({ limit: own }) => upright(own, { dash: "dot", width: 1 }))];
  const same = alikeWithin(report, axis, state).map((index) => scoreOf(report, index));
  if (same.length > 1)
    shapes.push({ type: "rect", layer: "below", x0: 0, x1: limit, y0: Math.min(...same), y1: Math.max(...same), fillcolor: BEST, opacity: 0.14, line: { width: 0 } });
  if (best !== null) shapes.push(shape(best, STAR, { fillcolor: BEST, line: { width: 1, color: "#1b1f24" } }));
  if (selected !== null && report.candidates.costs[axis][selected] !== null)
    shapes.push({ ...shape(selected), type: "circle", path: undefined, x0: -10, x1: 10, y0: -10, y1: 10, line: { width: 3, color: SELECTED } });
  return shapes;
}

// The limits that searches had on a cost, each with the names of these searches.
function limitsOf(report, axis) {
  const found = new Map();
  for (const { name, limits } of report.searches) {
    const limit = limits[report.axes[axis].name];
    if (limit) found.set(limit, [...(found.get(limit) ?? []), name]);
  }
  return [...found].map(([limit, names]) => ({ limit, names }));
}

function markFront(target, report, axis, state) {
  Plotly.relayout(target, { shapes: marks(report, axis, state) });
}

function drawHypervolume(target, report) {
  const shown = new Set();
  const traces = report.searches.map(({ name, group, generations }) => {
    const label = report.groups.length > 1 ? report.groups[group] : report.searches.length > 1 ? "searches" : name;
    const first = !shown.has(label);
    shown.add(label);
    return {
      type: "scatter",
      mode: "lines+markers",
      name: plain(label),
      legendgroup: plain(label),
      showlegend: first && report.searches.length > 1,
      x: generations.map(([evaluated]) => evaluated),
      y: generations.map(([, volume]) => volume),
      text: generations.map((_, generation) => plain(`${name}, generation ${generation + 1}`)),
      hovertemplate: "%{text}<br>%{x} evaluated, %{y:.4f}<extra></extra>",
      line: { color: pick(COLOURS, group), dash: pick(DASHES, group), width: 2 },
      marker: { symbol: pick(MARKS, group), size: 7 },
    };
  });
  const counts = report.searches.flatMap(({ generations }) => generations.map(([evaluated]) => evaluated));
  Plotly.newPlot(target, traces, layout("architectures evaluated", "hypervolume", { x: whole(counts) }), STILL);
}

function drawDevice(target, device) {
  const kinds = [
    [true, "predicted from all other measurements", COLOURS[0], "circle"],
    [false, "measured after the search", COLOURS[1], "square"],
  ];
  const largest = 1.05 * Math.max(...device.points.flatMap(([measured, predicted]) => [measured, predicted]));
  const noise = device.noise_percent ?? device.spread_percent ?? 0;
  const band = 1 + noise / 100;
  const traces = [
    { type: "scatter", mode: "lines", x: [0, largest, largest, 0], y: [0, largest * band, largest / band, 0], fill: "toself",
      fillcolor: "rgba(140,149,159,0.35)", line: { width: 0 }, hoverinfo: "skip",
      name: device.noise_percent === null ? "spread of repeated runs" : "noise floor" },
    { type: "scatter", mode: "lines", x: [0, largest], y: [0, largest], line: { color: "#8c959f", dash: "dash", width: 1 }, hoverinfo: "skip", name: "equal" },
  ];
  for (const [fitted, name, color, symbol] of kinds) {
    const points = device.points.filter((point) => point[3] === fitted);
    if (!points.length) continue;
    traces.push({
      type: "scatter", mode: "markers", name, x: points.map((p) => p[0]), y: points.map((p) => p[1]),
      error_y: { type: "data", array: points.map((p) => p[2] ?? 0), thickness: 1, width: 2, color },
      marker: { color, symbol, size: 7 }, hovertemplate: "measured %{x:.4g} ms, predicted %{y:.4g} ms<extra></extra>",
    });
  }
  Plotly.newPlot(target, traces, layout("measured (ms)", "predicted (ms)", { x: { rangemode: "tozero" }, y: { rangemode: "tozero" } }), STILL);
}

// The best that a device attains by intensity, from its nearest cache and from memory, and where each layer is.
function drawRoofline(target, found) {
  const x = found.points.map((point) => point[1]);
  const ends = [Math.min(0.5, ...x), Math.max((4 * found.peak_gflops) / found.bandwidth_gb[1], ...x)];
  const roofs = found.bandwidth_gb.map((rate, index) => {
    const ridge = Math.max(ends[0], Math.min(found.peak_gflops / rate, ends[1]));
    const at = [ends[0], ridge, ends[1]];
    return {
      type: "scatter", mode: "lines", x: at, y: at.map((intensity) => Math.min(found.peak_gflops, rate * intensity)), hoverinfo: "skip",
      line: { color: "#8c959f", dash: index ? "solid" : "dash", width: 1 }, name: `${index ? "memory" : "nearest cache"}: ${rate} GB/s`,
    };
  });
  const layers = ["compute", "bandwidth", "overhead"].map((bound, index) => {
    const own = found.points.filter((point) => point[3] === bound);
    return {
      type: "scatter", mode: "markers", name: `bound by ${bound}`, x: own.map((p) => p[1]), y: own.map((p) => p[2]), text: own.map((p) => plain(p[0])),
      marker: { color: COLOURS[index], symbol: MARKS[index], size: 7 }, hovertemplate: "%{text}: %{x:.3g} FLOP/byte, %{y:.3g} GFLOP/s at most<extra></extra>",
    };
  });
  const traces = [...roofs, ...layers.filter((trace) => trace.x.length)];
  Plotly.newPlot(target, traces, layout("FLOP for each byte moved", "GFLOP/s at most", { x: { type: "log" }, y: { type: "log" } }), STILL);
}

function drawCurves(target, curves, title, scale) {
  const traces = Object.entries(curves).map(([name, points], index) => ({
    type: "scatter", mode: points.length > 40 ? "lines" : "lines+markers", name: plain(name),
    x: points.map(([step]) => step), y: points.map(([, value]) => (value === null ? null : scale * value)),
    line: { color: pick(COLOURS, index), dash: pick(DASHES, index), width: 2 },
    marker: { symbol: pick(MARKS, index), size: 6 },
  }));
  Plotly.newPlot(target, traces, layout("step", title, { x: whole(traces.flatMap(({ x }) => x)) }), STILL);
}

function quantile(values, part) {
  const sorted = values.slice().sort((a, b) => a - b);
  return sorted[Math.floor(part * (sorted.length - 1))];
}

// How much of the score each choice explains that no other does, with the interval of 95 %.
function drawImportance(target, importance) {
  const shown = importance.slice(0, 15).reverse();
  const percent = (value) => 100 * Math.max(value, 0);
  const trace = {
    type: "scatter", mode: "markers", x: shown.map(({ share }) => percent(share)), y: shown.map(({ choice }) => plain(choice)),
    marker: { color: COLOURS[0], size: 9 }, hovertemplate: "%{y}: %{x:.3g} %<extra></extra>",
    error_x: {
      type: "data", symmetric: false, color: COLOURS[0], thickness: 1.5, width: 4,
      array: shown.map(({ share, high }) => percent(high) - percent(share)), arrayminus: shown.map(({ share, low }) => percent(share) - percent(low)),
    },
  };
  const more = { x: { rangemode: "tozero" }, layout: { showlegend: false } };
  target.style.height = `${5 + 1.7 * shown.length}rem`;
  Plotly.newPlot(target, [trace], layout("part of what other choices leave (%)", "", more), STILL);
}
