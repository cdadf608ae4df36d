"use strict";
// What the intervals of scores can tell apart, and how the searches of a report stand within a limit.

// Whether the score of `index` cannot be told apart from that of `best`, which is no lower: the interval of 95 % of their
// difference, by their own intervals (Newcombe 1998, method 10, for scores on different images), holds 0. On the same
// images a paired test tells more apart, which is what a search does with its front. Null where one has no interval.
function alike(report, best, index) {
  if (best === index) return true;
  const { score, interval } = report.candidates;
  if (!interval[best] || !interval[index]) return null;
  const fall = score[best] - interval[best][0];
  const rise = interval[index][1] - score[index];
  return score[best] - score[index] - Math.hypot(fall, rise) <= 0;
}

// The candidates within the limit that cannot be told apart from the best one within it, itself included.
function alikeWithin(report, axis, { best, limit }) {
  if (best === null || !report.candidates.interval[best]) return [];
  const costs = report.candidates.costs[axis];
  return costs.flatMap((cost, index) => (cost !== null && cost <= limit && alike(report, best, index) ? [index] : []));
}

// The best of each group within the limit, null where it has none.
function bestOfGroups(report, axis, limit) {
  const costs = report.candidates.costs[axis];
  return report.group_fronts[axis].map((front) => front.filter((index) => costs[index] <= limit).pop() ?? null);
}

// In words, which other architectures are as good as the best within the limit as far as the images tell.
function sayAlike(report, axis, state, cost) {
  const found = alikeWithin(report, axis, state);
  if (found.length < 2) return found.length ? "The images held out tell it apart from all others that were evaluated." : "";
  const cheapest = found.reduce((least, index) => (report.candidates.costs[axis][index] < report.candidates.costs[axis][least] ? index : least));
  const saved = cheapest === state.best ? "none of them is cheaper" : `the cheapest has ${cost(cheapest, axis)}`;
  const others = found.length === 2 ? "1 other within the limit" : `${found.length - 1} others within the limit`;
  return `By their intervals ${others} cannot be told apart from it (shaded); ${saved}.`;
}

// A table of the best of each group within the limit.
function drawCompared(report, axis, state, { score, cost, select, name }) {
  const target = document.getElementById("compared");
  document.getElementById("compared-part").hidden = report.groups.length < 2;
  if (report.groups.length < 2) return;
  const { unit } = report.axes[axis];
  const lines = bestOfGroups(report, axis, state.limit).map((index, group) => {
    if (index === null) return row([report.groups[group], "none within the limit", "", "", ""]);
    const same = alike(report, state.best, index);
    const verdict = index === state.best ? "the best" : same === null ? "" : same ? "cannot be told apart from the best" : "worse";
    const button = element("button", { type: "button" }, "Show");
    button.setAttribute("aria-label", `Show ${name(index)}`);
    button.addEventListener("click", () => select(index));
    return row([report.groups[group], score(index), cost(index, axis), verdict, button]);
  });
  const costName = report.axes[axis].name.replaceAll("_", " ") + (unit ? " (predicted)" : "");
  target.replaceChildren(row(["best within the limit", report.score.name, costName, "", ""], "th"), ...lines);
}
