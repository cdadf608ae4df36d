"use strict";
// What subnets that were taken out make of the test images: accuracy by class, what is taken for what, and images.

const WORST = 12; // classes that are shown at once

function drawAnswers(section, answers) {
  section.hidden = !answers.length;
  for (const found of answers) {
    const wrong = found.images.reduce((sum, count, k) => sum + count - found.right[k], 0);
    const all = found.images.reduce((sum, count) => sum + count, 0);
    section.append(
      element("h3", {}, found.folder),
      element("p", { className: "note" }, `${wrong} of ${all} images are answered wrongly.`),
      ...classesOf(found),
      element("p", {}, confusionsOf(found)),
    );
    for (const [drawn, title] of [[false, "The surest errors"], [true, "Drawn at random"]]) {
      const own = found.samples.filter((sample) => sample.drawn === drawn);
      if (!own.length) continue;
      const grid = element("div", { className: "answered" });
      grid.append(...own.map((sample) => imageOf(found, sample)));
      section.append(element("h4", {}, title), grid);
    }
  }
}

// A bar for each class that has images, the worst first; what is beyond the first few is folded away.
function classesOf(found) {
  const known = found.classes.map((_, k) => k).filter((k) => found.images[k]);
  const accuracy = (k) => found.right[k] / found.images[k];
  const bars = known.sort((a, b) => accuracy(a) - accuracy(b)).map((k) => {
    const line = element("div", { className: "bar" });
    const [track, bar, interval] = [element("i"), element("i"), element("s", { className: "interval" })];
    const [low, high] = found.intervals[k];
    bar.style.width = `${100 * accuracy(k)}%`;
    Object.assign(interval.style, { left: `${100 * low}%`, width: `${100 * (high - low)}%`, margin: 0, bottom: "auto" });
    track.append(bar, interval);
    line.append(element("b", {}, found.classes[k]), track, element("span", {}, `${found.right[k]} of ${found.images[k]}`));
    return line;
  });
  const shown = element("div", { className: "frequencies" });
  shown.append(...bars.slice(0, WORST));
  if (bars.length <= WORST) return [shown];
  const [more, rest] = [element("details"), element("div", { className: "frequencies" })];
  rest.append(...bars.slice(WORST));
  more.append(element("summary", {}, `${bars.length - WORST} more classes`), rest);
  return [shown, more];
}

function confusionsOf({ confusions, classes }) {
  const pairs = confusions.slice(0, 5).map(([label, answer, count]) => `${classes[label]} for ${classes[answer]} (${count})`);
  return pairs.length ? `Most often it takes ${pairs.join(", ")}.` : "";
}

function imageOf({ classes }, { image, name, label, classes: answers, probabilities }) {
  const right = answers[0] === label;
  const made = element("figure", { className: right ? "right" : "wrong" });
  const picture = element("img", { src: `data:image/jpeg;base64,${image}`, alt: `${name}: ${classes[label]}` });
  const said = element("figcaption");
  said.append(
    element("b", {}, right ? classes[label] : `${classes[label]} taken for ${classes[answers[0]]}`),
    ...answers.map((answer, place) => element("div", {}, `${classes[answer]} ${(100 * probabilities[place]).toFixed(1)} %`)),
  );
  made.append(picture, said);
  return made;
}
