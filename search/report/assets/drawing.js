"use strict";
// An architecture as parts from the image to the classifier. Names of choices are paths such as blocks.2.0.kernel_size:
// what ends in a number is a block of the stage before it, or a stage of its own.

// The parts of an architecture, {name: value}: [{name, facts: {property: value}, blocks: [{property: value}], stage}].
function partsOf(arch) {
  const stages = stagesOf(arch);
  const parts = new Map();
  const part = (name) => parts.get(name) ?? parts.set(name, { name, facts: {}, blocks: [], stage: stages(name) }).get(name);
  for (const [choice, value] of Object.entries(arch)) {
    const path = choice.split(".");
    const property = path.pop();
    const last = path.findLastIndex(isNumber);
    if (!path.length) {
      part(choice).facts[""] = value;
    } else if (last < 1 || (last === path.length - 1 && stages(path.join(".")))) {
      part(path.join(".")).facts[property] = value;
    } else {
      const owner = part(path.slice(0, last).join("."));
      owner.stage = true;
      const block = (owner.blocks[Number(path[last])] ??= {});
      block[[...path.slice(last + 1), property].join(".")] = value;
    }
  }
  for (const { facts, blocks } of parts.values()) {
    const shared = ["kernel_size", "expand_ratio"].filter((property) => property in facts); // decided by stage
    for (let b = 0; b < (facts.depth ?? blocks.length); b++) {
      blocks[b] = { ...Object.fromEntries(shared.map((property) => [property, facts[property]])), ...blocks[b] };
    }
  }
  return [...parts.values()];
}

const isNumber = (step) => /^\d+$/.test(step);

// Which names are stages: what has a depth, what numbered blocks lie in, and the numbered siblings of such.
function stagesOf(arch) {
  const names = new Set();
  for (const choice of Object.keys(arch)) {
    const path = choice.split(".");
    if (path.pop() === "depth") names.add(path.join("."));
    if (path.filter(isNumber).length > 1) names.add(path.slice(0, path.findLastIndex(isNumber)).join("."));
  }
  const above = new Set([...names].filter((name) => /\.\d+$/.test(name)).map((name) => name.replace(/\.\d+$/, "")));
  return (name) => names.has(name) || (/\.\d+$/.test(name) && above.has(name.replace(/\.\d+$/, "")));
}

function drawArchitecture(target, arch) {
  const parts = partsOf(arch);
  target.replaceChildren(...parts.map(drawPart));
  target.setAttribute("aria-label", parts.map(inWords).join("; "));
}

function drawPart({ name, facts, blocks, stage }) {
  const box = element("div", { className: stage ? "part stage" : "part" });
  box.append(element("b", {}, name));
  const words = Object.entries(facts)
    .filter(([property]) => !(blocks.length && ["depth", "kernel_size", "expand_ratio"].includes(property)))
    .map(([property, value]) => fact(property, value));
  if (words.length) box.append(element("span", {}, words.join(", ")));
  if (blocks.length) {
    const row = element("div", { className: "blocks" });
    row.append(...Array.from(blocks, drawBlock));
    box.append(row, element("span", {}, blocks.length === 1 ? "1 block" : `${blocks.length} blocks`));
  }
  return box;
}

// Its height grows with the expansion; it says kernel and expansion, or whatever else was chosen.
function drawBlock(block) {
  const properties = { ...block };
  const { kernel_size: kernel, expand_ratio: expansion } = properties;
  delete properties.kernel_size;
  delete properties.expand_ratio;
  const lines = Object.entries(properties).map(([property, value]) => fact(property, value));
  if (expansion !== undefined) lines.unshift(`×${expansion}`);
  if (kernel !== undefined) lines.unshift(`${kernel}×${kernel}`);
  const box = element("div", { className: "block", title: Object.entries(block).map((pair) => pair.join(" ")).join(", ") });
  box.style.height = `${1.3 * Math.max(lines.length, 1) + 0.3 * (Number(expansion) || 1)}rem`;
  box.append(...lines.map((line) => element("span", {}, line)));
  return box;
}

function fact(property, value) {
  if (property === "") return String(value);
  if (property === "width") return `${value} channels`;
  return `${property.replaceAll("_", " ")} ${value}`;
}

function inWords({ name, facts, blocks }) {
  const words = Object.entries(facts).map(([property, value]) => fact(property, value));
  const inside = Array.from(blocks, (block) => Object.entries(block).map(([p, v]) => fact(p, v)).join(" "));
  return [name, ...words, ...inside].join(", ");
}

// Text is only ever set as text: nothing from a run is parsed as HTML.
function element(tag, properties = {}, text) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}
