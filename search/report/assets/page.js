"use strict";
// The page: which cost is looked at, the limit on it, and the architecture that is selected.

const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { axis: 0, limit: 0, best: null, selected: null };
const choices = Object.entries(report.choices);

const archOf = (index) =>
  Object.fromEntries(
    choices.flatMap(([name, values], c) => {
      const code = report.candidates.codes[index][c];
      return code < 0 ? [] : [[name, values[code]]];
    }),
  );
const searchOf = (index) => report.searches[report.candidates.search[index]];
const commandOf = (index) => searchOf(index).command.join(report.candidates.line[index]) + report.candidates.line[index];
const nameOf = (index) => `${searchOf(index).name}, evaluation ${report.candidates.line[index]}`;

function quantity(value, unit) {
  if (value === null || value === undefined) return "";
  if (unit) return `${Number(value.toPrecision(3))} ${unit}`;
  for (const [size, suffix] of [[1e9, " G"], [1e6, " M"], [1e3, " K"]]) if (value >= size) return (value / size).toPrecision(3) + suffix;
  return String(value);
}

// A score with as many digits as its interval supports: up to the first digit of its standard error.
function withInterval(value, bounds, interval) {
  const { percent } = report.score;
  const scale = percent ? 100 : 1;
  if (!bounds) return percent ? `${(100 * value).toFixed(1)} %` : value.toPrecision(4);
  const error = (scale * (bounds[1] - bounds[0])) / 2 / 1.96;
  const digits = error > 0 ? Math.max(-Math.floor(Math.log10(error)), 0) : 1;
  const show = (number) => (scale * number).toFixed(digits);
  const text = show(value) + (percent ? " %" : "");
  return interval ? `${text} (${show(bounds[0])} to ${show(bounds[1])})` : text;
}

function score(index, interval = true) {
  return withInterval(report.candidates.score[index], report.candidates.interval[index], interval);
}

// What the search says of how sure an architecture on its front is.
function certainty(index) {
  const confirmed = report.candidates.confirmed[index];
  const asGood = report.candidates.as_good[index] === "yes" ? "cannot be told apart from the best" : "";
  const fresh = confirmed ? `${withInterval(confirmed.score, confirmed.interval, true)} on fresh examples` : "";
  const tested = report.candidates.tested[index];
  const test = tested ? `${withInterval(tested.score, tested.interval, true)} on test images, taken out to ${tested.folder}` : "";
  return [fresh, asGood, test].filter(Boolean).join("; ");
}

function cost(index, axis) {
  const { unit } = report.axes[axis];
  const error = report.candidates.errors[axis]?.[index];
  const value = quantity(report.candidates.costs[axis][index], unit);
  return error ? `${value} ± ${Number((1.96 * error).toPrecision(2))}` : value;
}

// What holds it back on each device of which that is known.
function bottleneckOf(index) {
  const percent = (part) => `${Math.round(100 * part)} %`;
  return report.axes
    .flatMap(({ name }, axis) => {
      const found = report.bottlenecks[axis][index];
      if (!found) return [];
      const shares = found.shares.map(([what, part]) => `${percent(part)} ${what}`).join(", ");
      return [`At best on ${name}, its time is ${shares}; most of it in ${found.layers.map(([layer, part]) => `${layer} (${percent(part)})`).join(", ")}.`];
    })
    .join(" ");
}

// How probable it is that a latency keeps within the limit of its search.
function probability(index, axis) {
  const value = report.candidates.within[axis]?.[index];
  return value === null || value === undefined ? "" : `${Math.round(100 * value)} %`;
}

function row(cells, tag = "td") {
  const made = element("tr");
  made.append(...cells.map((cell) => (cell instanceof Node ? wrap(cell) : element(tag, {}, cell))));
  return made;
}

function wrap(node) {
  const cell = element("td");
  cell.append(node);
  return cell;
}

// What hovering over a point says.
function hoverOf(index) {
  const costs = report.axes.slice(0, 3).map(({ name }, axis) => `${name.replaceAll("_", " ")}: ${cost(index, axis)}`);
  return [nameOf(index), `${report.score.name}: ${score(index)}`, ...costs, certainty(index)].filter(Boolean);
}

// Shows an architecture.
function show(index) {
  $("selected-name").textContent = nameOf(index);
  $("selected-facts").textContent = [`${report.score.name} ${score(index)}`, certainty(index)].filter(Boolean).join("; ");
  drawArchitecture($("drawing"), archOf(index));
  const limited = report.candidates.within.some((probabilities) => probabilities);
  $("selected-costs").replaceChildren(
    row(["cost", "", "measured", ...(limited ? ["within the limit"] : [])], "th"),
    ...report.axes.map(({ name, unit }, axis) => {
      const measured = unit ? quantity(report.candidates.measured[axis][index], unit) : "";
      const label = name.replaceAll("_", " ") + (unit ? " (predicted)" : "");
      return row([label, cost(index, axis), measured, ...(limited ? [probability(index, axis)] : [])]);
    }),
  );
  $("bottleneck").textContent = bottleneckOf(index);
  $("command").textContent = commandOf(index);
  $("json").textContent = JSON.stringify(archOf(index));
}

function select(index) {
  state.selected = index;
  show(index);
  markFront($("front"), report, state.axis, state);
  markParallel(index);
  markTable();
}

function markTable() {
  const index = state.selected;
  for (const line of $("front-table").querySelectorAll("tr")) line.classList.toggle("current", Number(line.dataset.index) === index);
}

function bestUnder(limit) {
  const within = report.fronts[state.axis].filter((index) => report.candidates.costs[state.axis][index] <= limit);
  return within.length ? within[within.length - 1] : null; // by increasing cost, so the last is the most accurate
}

// The limit on this cost that all searches had.
function limitOf(axis) {
  const limits = limitsOf(report, axis);
  return limits.length === 1 && limits[0].names.length === report.searches.length ? limits[0].limit : null;
}

function sayLimits(axis) {
  const { unit } = report.axes[axis];
  const limits = limitsOf(report, axis);
  if (!limits.length) return "";
  if (report.searches.length === 1) return ` The search was limited to ${quantity(limits[0].limit, unit)}.`;
  const whose = ({ limit, names }) => `${quantity(limit, unit)} (${names.length > 3 ? `${names.length} searches` : names.join(", ")})`;
  return ` Searches were limited to ${limits.map(whose).join(", ")}: dotted.`;
}

// Reads the slider; the best architecture within it becomes the selected one.
function setLimit() {
  const { unit, name } = report.axes[state.axis];
  state.limit = Number($("limit").value);
  state.best = bestUnder(state.limit);
  state.selected = state.best ?? state.selected;
  const text = quantity(state.limit, unit);
  $("limit-value").textContent = text;
  $("limit").setAttribute("aria-valuetext", text);
  $("best").textContent =
    state.best === null
      ? `No architecture that was evaluated stays within ${text}.`
      : `Best within ${text} on ${name}: ${report.score.name} ${score(state.best, false)} at ${cost(state.best, state.axis)}.`;
  $("alike").textContent = sayAlike(report, state.axis, state, cost);
  drawCompared(report, state.axis, state, { score, cost, select, name: nameOf });
  show(state.selected);
  markParallel(state.selected);
}

function setAxis(axis) {
  state.axis = axis;
  const { name, unit } = report.axes[axis];
  const values = report.candidates.costs[axis].filter((value) => value !== null);
  const front = report.fronts[axis];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = 10 ** Math.floor(Math.log10((high - low) / 100 || low / 100 || 1));
  const slider = $("limit");
  slider.step = step;
  slider.min = Number((Math.ceil(low / step) * step).toPrecision(12)); // the cheapest stays within any position
  slider.max = Number((Math.max(Math.ceil(high / step), Math.ceil(low / step)) * step).toPrecision(12));
  slider.value = limitOf(axis) ?? slider.max;
  setLimit();
  $("front-caption").textContent =
    `${front.length} of ${values.length} architectures are on the front for ${name}${unit ? " (predicted)" : ""}.` +
    `${sayLimits(axis)} Click a point, or focus the chart and use the arrow keys.`;
  drawFront($("front"), report, axis, state);
  drawTable();
  markTable();
  drawFrequencies();
  drawParallel($("parallel"), report, axis, select);
  markParallel(state.selected);
}

function drawTable() {
  const front = report.fronts[state.axis];
  const sure = front.some(certainty) ? [certainty] : []; // a column if there is anything in it
  const head = row(["", report.score.name, ...sure.map(() => ""), ...report.axes.map((axis) => axis.name.replaceAll("_", " "))], "th");
  const lines = front.map((index) => {
    const button = element("button", { type: "button" }, "Show");
    button.setAttribute("aria-label", `Show ${nameOf(index)}`);
    button.addEventListener("click", () => select(index));
    const made = row([button, score(index), ...sure.map((say) => say(index)), ...report.axes.map((_, axis) => cost(index, axis))]);
    made.dataset.index = index;
    return made;
  });
  $("front-table").replaceChildren(head, ...lines);
}

function drawFrequencies() {
  const cards = report.frequencies[state.axis].map(({ choice, values, front, population, applies, of }) => {
    const card = element("div", { className: "frequency" });
    card.append(element("h4", {}, choice));
    const few = applies < 20; // shares of a few would look surer than they are
    const share = (part, whole) => (few ? `${Math.round(part * whole)} of ${whole}` : `${Math.round(100 * part)} %`);
    values.forEach((value, index) => {
      const line = element("div", { className: "bar" });
      const [track, bar, mark] = [element("i"), element("i"), element("s")];
      bar.style.width = `${100 * front[index]}%`;
      mark.style.left = `${100 * population[index]}%`;
      track.append(bar, mark);
      line.append(element("b", {}, value), track, element("span", {}, `${share(front[index], applies)} | ${few && of < 20 ? share(population[index], of) : `${Math.round(100 * population[index])} %`}`));
      card.append(line);
    });
    return card;
  });
  $("frequencies").replaceChildren(...cards.slice(0, 12));
  const more = $("more-frequencies");
  more.hidden = cards.length <= 12;
  more.querySelector("summary").textContent = `${cards.length - 12} more choices`;
  more.querySelector("div").replaceChildren(...cards.slice(12));
}

// Adds the figures [caption, draw] to a section, and draws them when all have their places: how wide each is follows from
// how many there are.
function figures(section, found) {
  const charts = found.map(([caption]) => {
    const made = element("figure");
    const chart = element("div", { className: "chart", role: "img" });
    chart.setAttribute("aria-label", caption);
    made.append(chart, element("figcaption", {}, caption));
    section.append(made);
    return chart;
  });
  found.forEach(([, draw], index) => draw(charts[index]));
}

function drawDevices() {
  const section = $("devices");
  section.hidden = !report.devices.length;
  const charts = element("div", { className: "charts" });
  section.append(charts);
  const found = report.devices.map((device) => {
    const noise =
      device.noise_percent !== null
        ? `the noise floor, the mean difference of two independent measurements, is ${device.noise_percent.toFixed(1)} %`
        : device.spread_percent !== null
          ? `repeated runs spread by ${device.spread_percent.toFixed(1)} % (half their interquartile range; supernet measure-latency --noise-floor measures the noise floor proper)`
          : "nothing is known of the noise";
    return [`${device.name}: mean error of a prediction ${device.error_percent.toFixed(1)} %; ${noise}.`, (chart) => drawDevice(chart, device)];
  });
  figures(charts, found);
}

function drawDiagnoses() {
  const section = $("diagnoses");
  section.hidden = !report.diagnoses.length;
  const part = (value, whole) => `${quantity(value, "")} (${Math.round((100 * value) / whole)} %)`;
  for (const found of report.diagnoses) {
    const shares = Object.entries(found.shares).map(([name, share]) => `${name} ${Math.round(100 * share)} %`).join(", ");
    const exceeded = Object.entries(found.exceeded).map(([name, times]) => ` ${name} is ${times.toFixed(2)} times its limit.`).join("");
    const caption = `${found.network} on ${found.device}: held back by ${found.bottlenecks.join(", then ")}. Its time: ${shares}.${exceeded}`;
    figures(section, [[caption, (chart) => drawRoofline(chart, found)]]);
    const table = element("table");
    table.append(
      row(["change", "why", "ms", "activation bytes", "stored bytes"], "th"),
      ...found.advice.map((each) =>
        row([each.change, each.reason, ...["estimate_ms", "activation_bytes", "stored_bytes"].map((name) => part(each[name], found[name]))]),
      ),
    );
    const scroll = element("div", { className: "scroll" });
    scroll.append(table);
    section.append(scroll);
  }
}

function drawTrainings() {
  const section = $("trainings");
  section.hidden = !report.trainings.length;
  const charts = element("div", { className: "charts" });
  section.append(charts);
  const found = [];
  for (const { name, metrics, losses } of report.trainings) {
    for (const [metric, curves] of Object.entries(metrics)) {
      const [examples, title, scale] = metric === "accuracy" ? ["images", "accuracy (%)", 100] : ["examples", metric, 1];
      found.push([`${name}: ${metric} on held-out ${examples} of the largest, the smallest and random subnets.`, (chart) => drawCurves(chart, curves, title, scale)]);
    }
    if (Object.keys(losses).length)
      found.push([`${name}: training loss of each subnet of a step; those that learn from a teacher's logits have another loss than those that learn from labels.`, (chart) => drawCurves(chart, losses, "training loss", 1)]);
  }
  figures(charts, found);
}

function drawFacts() {
  for (const { name, pairs } of report.facts) {
    const list = element("dl");
    for (const [what, which] of pairs) list.append(element("dt", {}, what), element("dd", {}, which));
    const part = element("div");
    part.append(element("h3", {}, name), list);
    $("facts").append(part);
  }
}

function drawImportances() {
  $("importance-section").hidden = !report.importance.length;
  if (report.importance.length) drawImportance($("importance"), report.importance);
}

function drawComparison() {
  $("comparison-section").hidden = report.comparison.length < 2;
  const spread = ([mean, deviation], factor, digits) => (factor * mean).toFixed(digits) + (deviation === null ? "" : ` ± ${(factor * deviation).toFixed(digits)}`);
  const percent = report.score.percent;
  $("comparison").replaceChildren(
    row(["objective and limits", "", "searches", "evaluated", `best ${report.score.name}${percent ? " (%)" : ""}`, "hypervolume"], "th"),
    ...report.comparison.map(({ task, group, searches, evaluated, best, hypervolume }) =>
      row([task, group, searches, evaluated, spread(best, percent ? 100 : 1, percent ? 2 : 4), spread(hypervolume, 1, 4)]),
    ),
  );
}

function drawStandings() {
  $("standings-section").hidden = !report.standings.length;
  const shown = (value) => (value === null ? "" : String(Number(value.toPrecision(4))));
  $("standings").replaceChildren(
    row(["device", "limit (ms)", "strategy", "judged by", "value", "regret", "seeds", "failed", "latency (ms)", "evaluations", "seconds", ""], "th"),
    ...report.standings.map((standing) =>
      row([
        standing.device,
        shown(standing.limit_ms),
        standing.strategy,
        standing.judged_by.replaceAll("_", " "),
        shown(standing.value) + (standing.standard_error === null ? "" : ` ± ${shown(standing.standard_error)}`),
        ...[standing.regret, standing.seeds, standing.failed, standing.latency_ms, standing.evaluations, standing.seconds].map(shown),
        standing.told_apart === "no" ? "not told apart from the first" : "",
      ]),
    ),
  );
}

function chooseAxis() {
  report.axes.forEach(({ name }, axis) => {
    const label = element("label");
    const input = element("input", { type: "radio", name: "axis", checked: axis === 0 });
    input.addEventListener("change", () => setAxis(axis));
    label.append(input, element("span", {}, name.replaceAll("_", " ")));
    $("axes").append(label);
  });
}

function walk(event) {
  const front = report.fronts[state.axis];
  const at = front.indexOf(state.selected);
  const to = { ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, front.length - 1), Home: 0, End: front.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(front[to]);
}

const resize = (size) => document.querySelectorAll(".chart").forEach((chart) => Plotly.relayout(chart, size));

function start() {
  const evaluated = report.searches.reduce((sum, search) => sum + search.evaluated, 0);
  const failed = report.searches.reduce((sum, search) => sum + search.failed, 0);
  const searches = report.searches.length === 1 ? "one search" : `${report.searches.length} searches`;
  $("summary").textContent = !evaluated ? `No architecture has been evaluated yet; ${report.date}.` :
    `${evaluated} architectures evaluated in ${searches}${failed ? `, ${failed} of them failed` : ""}; ${report.date}. ` +
    "Choose a point, or the most you can afford, and take that architecture out with the command beside it." +
    (report.left_out.length ? ` Not shown, as they have no ${report.score.name}: ${report.left_out.join(", ")}.` : "");
  const name = report.score.name.replaceAll("_", " ");
  $("front-heading").textContent = `${name[0].toUpperCase()}${name.slice(1)} against cost`;
  $("front").ariaLabel = `${$("front-heading").textContent}. Left and right arrows walk along the Pareto front.`;
  $("notes").hidden = !report.notes.length;
  $("notes").replaceChildren(...report.notes.map((note) => element("li", {}, note)));
  $("provenance").textContent =
    `From ${[...new Set(report.searches.map((search) => search.folder))].join(", ")}. ` +
    Object.entries(report.versions).map((pair) => pair.join(" ")).join(", ");
  drawFacts();
  follow();
  for (const part of document.querySelectorAll(".searched")) part.hidden = !report.axes.length;
  if (report.axes.length) startSearches();
  document.documentElement.dataset.ready = "true";
  later([...(report.axes.length ? [() => drawHypervolume($("hypervolume"), report)] : []), () => drawAnswers($("answers"), report.answers), drawDevices, drawDiagnoses, drawTrainings, drawImportances]);
}

function startSearches() {
  chooseAxis();
  setAxis(0);
  $("limit").addEventListener("input", () => {
    setLimit();
    markFront($("front"), report, state.axis, state);
    markTable();
  });
  $("front").addEventListener("keydown", walk);
  $("front").on("plotly_click", ({ points }) => points.length && points[0].customdata !== undefined && select(points[0].customdata));
  $("copy").addEventListener("click", () => navigator.clipboard?.writeText($("command").textContent));
  addEventListener("beforeprint", () => resize({ width: 640, height: 320 })); // as in the style for print
  addEventListener("afterprint", () => resize({ width: null, height: null, autosize: true }));
  drawComparison();
  drawStandings();
}

// A page that `supernet dashboard` shows is loaded anew when there is something new.
function follow() {
  $("live").hidden = !report.live;
  if (!report.live) return;
  setInterval(async () => {
    const version = await fetch("version").then((answer) => answer.text(), () => null);
    $("live").textContent = version === null ? "The dashboard has ended; this is what was there last." : "Live: new results appear by themselves.";
    if (version !== null && version !== report.live) location.reload();
  }, 2000);
}

// What lies further down is drawn a piece at a time, so that the page can be used meanwhile.
function later([first, ...rest]) {
  if (!first) {
    document.documentElement.dataset.drawn = "true";
    return;
  }
  setTimeout(() => {
    first();
    later(rest);
  });
}

start();
