"use strict";
// Parallel coordinates: a line for each architecture, through its score, its costs and the choices that matter most.

const LINES = 150; // of architectures that are not on the front
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild.namespaceURI;
const [WIDTH, HEIGHT, ABOVE, BESIDE] = [1000, 300, 40, 60];

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Names, and for each candidate's index a height from 0 to 1 and a text; the lowest and the highest text.
function dimensionsOf(report) {
  const { candidates } = report;
  const numbers = (name, values, shown) => {
    const known = values.filter((value) => value !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const at = (index) => (values[index] === null ? null : high > low ? (values[index] - low) / (high - low) : 0.5);
    return { name, at, low: shown(low), high: shown(high) };
  };
  const score = (value) => (report.score.percent ? `${(100 * value).toFixed(1)} %` : value.toPrecision(3));
  const costs = report.axes.slice(0, 3).map(({ name, unit }, axis) => numbers(name.replaceAll("_", " "), candidates.costs[axis], (value) => quantity(value, unit)));
  const names = report.importance.length ? report.importance.map(({ choice }) => choice) : report.frequencies[0].map(({ choice }) => choice);
  const chosen = names.slice(0, 6).map((name) => {
    const column = Object.keys(report.choices).indexOf(name);
    const values = report.choices[name];
    const at = (index) => (candidates.codes[index][column] < 0 ? null : values.length > 1 ? candidates.codes[index][column] / (values.length - 1) : 0.5);
    return { name, at, low: String(values[0]), high: String(values[values.length - 1]) };
  });
  return [numbers(report.score.name, candidates.score, score), ...costs, ...chosen];
}

function drawParallel(target, report, axis, select) {
  const dimensions = dimensionsOf(report);
  const x = (dimension) => BESIDE + (dimension * (WIDTH - 2 * BESIDE)) / Math.max(dimensions.length - 1, 1);
  const y = (height) => ABOVE + (1 - height) * (HEIGHT - ABOVE - 25);
  const front = new Set(report.fronts[axis]);
  const others = report.candidates.score.map((_, index) => index).filter((index) => !front.has(index));
  const kept = others.filter((_, place) => Math.floor((place * LINES) / others.length) !== Math.floor(((place - 1) * LINES) / others.length));
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  picture.setAttribute("aria-label", `Parallel coordinates of ${dimensions.map(({ name }) => name).join(", ")}: ${front.size} architectures on the front, ${kept.length} of the others.`);
  const line = (index, kind) => {
    const points = dimensions.map(({ at }, dimension) => [dimension, at(index)]).filter(([, height]) => height !== null);
    const made = svg("polyline", { class: kind, points: points.map(([dimension, height]) => `${x(dimension)},${y(height)}`).join(" ") });
    made.dataset.index = index;
    made.append(svg("title", {}, hoverOf(index).join(", ")));
    made.addEventListener("click", () => select(index));
    return made;
  };
  picture.append(...kept.map((index) => line(index, "other")), ...report.fronts[axis].map((index) => line(index, "front")));
  picture.append(svg("polyline", { class: "chosen", points: "" }));
  dimensions.forEach(({ name, low, high }, dimension) => {
    const short = name.length > 16 ? `…${name.slice(-15)}` : name;
    const label = svg("text", { x: x(dimension), y: 14, "text-anchor": "middle", class: "name" }, short);
    label.append(svg("title", {}, name));
    picture.append(
      svg("line", { x1: x(dimension), x2: x(dimension), y1: y(0), y2: y(1), class: "axis" }),
      label,
      svg("text", { x: x(dimension), y: ABOVE - 8, "text-anchor": "middle" }, high),
      svg("text", { x: x(dimension), y: HEIGHT - 6, "text-anchor": "middle" }, low),
    );
  });
  target.replaceChildren(picture);
}

function markParallel(index) {
  const chosen = document.querySelector("#parallel .chosen");
  const own = document.querySelector(`#parallel polyline[data-index="${index}"]`);
  if (chosen) chosen.setAttribute("points", own ? own.getAttribute("points") : "");
}
