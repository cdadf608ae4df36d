"use strict";
// An architecture as parts from the image to the classifier. Names of choices are paths such as blocks.2.0.kernel_size:
// what ends in a number is a block of the stage before it, or a stage of its own.

// The parts of an architecture, {name: value}: [{name, facts: {property: value}, blocks: [{property: value}], stage}].
function partsOf(arch) {
  const stages = stagesOf(arch);
  const parts = new Map();
  const part = (name) => parts.get(name) ?? parts.set(name, { name, facts: {}, blocks: [], stage: stages(name) }).get(name);
  const places = new Map();
  for (const [index, [choice, value]] of Object.entries(arch).entries()) {
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
    const name = ownerOf(choice, path, last, stages);
    if (property !== "depth" && !places.has(name)) places.set(name, index);
  }
  for (const { facts, blocks } of parts.values()) {
    const shared = ["kernel_size", "expand_ratio"].filter((property) => property in facts); // decided by stage
    for (let b = 0; b < (facts.depth ?? blocks.length); b++) {
      blocks[b] = { ...Object.fromEntries(shared.map((property) => [property, facts[property]])), ...blocks[b] };
    }
  }
  const place = (name) => places.get(name) ?? besideSiblings(name, places);
  return [...parts.values()].sort((one, other) => place(one.name) - place(other.name));
}

// The part that a choice belongs to.
function ownerOf(choice, path, last, stages) {
  if (!path.length) return choice;
  return last < 1 || (last === path.length - 1 && stages(path.join("."))) ? path.join(".") : path.slice(0, last).join(".");
}

// Where a stage lies that has nothing but a depth, which a space may declare before all else: behind the stage with the
// next smaller number, or before that with the next larger one, or first of all.
function besideSiblings(name, places) {
  const numbered = (other) => /^(.*?)(\d+)$/.exec(other) ?? [other, other, "0"];
  const [, kind, number] = numbered(name);
  const siblings = [...places].map(([other, place]) => [numbered(other), place]).filter(([[, own]]) => own === kind);
  const before = siblings.filter(([[, , own]]) => Number(own) < Number(number)).map(([, place]) => place + Number(number) / 1000);
  const behind = siblings.filter(([[, , own]]) => Number(own) > Number(number)).map(([, place]) => place - 0.5 + Number(number) / 1000);
  return before.length ? Math.max(...before) : behind.length ? Math.min(...behind) : -1;
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
