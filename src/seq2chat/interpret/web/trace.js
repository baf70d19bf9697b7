"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector) => document.querySelector(selector);
const label = (token) =>
  (typeof token === "string" ? token : token.text).replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 99.95 ? "100%" : p >= 0.1 ? `${p.toFixed(1)}%` : `${p.toPrecision(1)}%`;
};
const signed = (x, digits = 3) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const probe = document.body.appendChild(document.createElement("i"));
// A canvas needs the color itself: light-dark() has no meaning there.
const color = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}
function bar(share, from = 0) {
  const inner = element("i");
  inner.style.setProperty("--width", `${100 * Math.abs(share)}%`);
  inner.style.setProperty("--from", `${100 * from}%`);
  inner.classList.toggle("minus", share < 0);
  return element("div", { className: "bar" }, inner);
}
const piece = (token) => element("span", { className: "piece", textContent: label(token) });

function showText() {
  const shape = data.source ? `${data.source.length} source and ${data.tokens.length} target` : `${data.tokens.length}`;
  $("#about").textContent = `${data.model || "A model"} of the family ${data.family}, ${shape} tokens.`;
  const spans = (tokens, current) =>
    tokens.map((token, i) =>
      element("span", { className: i === current ? "token current" : "token", textContent: label(token), title: `${i}: id ${token.id}` }),
    );
  if (data.source) $("#text").append(...spans(data.source, -1), " → ");
  $("#text").append(...spans(data.tokens, data.position));
  $("#message").hidden = !data.message;
  $("#message").textContent = data.message || "";
}

function showPrediction() {
  const where = data.predicts === "next token" ? "after" : "at";
  $("#prediction .hint").textContent =
    `The ${data.predicts} ${where} “${label(data.tokens[data.position])}” (position ${data.position}): ` +
    `the most likely of all tokens. Entropy ${data.entropy.toFixed(2)} nats.`;
  for (const token of data.top) {
    $("#prediction tbody").append(
      element("tr", {}, element("td", {}, piece(token)), element("td", {}, bar(Math.exp(token.logprob))), element("td", { textContent: percent(token.logprob) })),
    );
  }
}

function showEffect() {
  if (!data.effect) return;
  $("#effect").hidden = false;
  for (const token of data.effect.tokens) {
    const cells = [percent(token.before), percent(token.after), signed(token.delta)];
    $("#effect tbody").append(
      element("tr", {}, element("td", {}, piece(token)), ...cells.map((textContent) => element("td", { className: "number", textContent }))),
    );
  }
}

function showEffects() {
  const effects = data.effects;
  if (!effects) return;
  $("#effects").hidden = false;
  $("#effects .hint").textContent =
    `${effects.question} Numbers are changes of log p(${label(data.target)}) in nats; rows are layers, columns are heads.`;
  const most = Math.max(1e-9, ...effects.values.flat().map(Math.abs));
  effects.values.forEach((row, layer) => {
    const cells = row.map((value, head) => {
      const cell = element("td", { className: "number", textContent: Math.abs(value) < 0.005 ? "·" : signed(value, 2), title: `layer ${layer}, head ${head}: ${value}` });
      const tint = value < 0 ? "--minus" : "--accent";
      cell.style.background = `color-mix(in oklab, var(${tint}) ${(75 * Math.abs(value)) / most}%, transparent)`;
      return cell;
    });
    $("#effects tbody").append(element("tr", {}, element("th", { textContent: `layer ${layer}` }), ...cells));
  });
}

function showLens() {
  const grid = data.grid;
  if (!grid) return;
  $("#lens").hidden = false;
  $("#lens thead").append(
    element("tr", {}, element("th", { textContent: "after" }), ...grid.positions.map((p) => element("th", { textContent: label(data.tokens[p]) }))),
  );
  for (let row = grid.sites.length - 1; row >= 0; row--) {
    const cells = grid.ids[row].map((id, column) => {
      const logprob = grid.logprobs[row][column];
      const cell = element("td", { textContent: label(grid.texts[id]), title: `${label(grid.texts[id])}: ${percent(logprob)}` });
      cell.style.setProperty("--p", Math.exp(logprob));
      return cell;
    });
    $("#lens tbody").append(element("tr", {}, element("th", { textContent: grid.sites[row] }), ...cells));
  }
  const scroll = $("#lens .scroll");
  scroll.scrollLeft = scroll.scrollWidth;
}

function showAttribution() {
  const parts = data.attribution;
  if (!parts) return;
  $("#attribution").hidden = false;
  $("#attribution .hint").textContent =
    `The parts of the logit of “${label(data.target)}”, which is ${data.target.logit.toFixed(3)}. They sum to it.`;
  const most = Math.max(...parts.map((part) => Math.abs(part.logit)));
  for (const part of parts) {
    const share = part.logit / most / 2;
    const name = part.site.replace(".heads.context", "") + (part.head === null ? "" : ` · head ${part.head}`);
    $("#attribution tbody").append(
      element("tr", {}, element("th", { textContent: name }), element("td", {}, bar(share, share < 0 ? 0.5 + share : 0.5)), element("td", { textContent: signed(part.logit) })),
    );
  }
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}
function rgb(name) {
  const canvas = element("canvas", { width: 1, height: 1 });
  const context = canvas.getContext("2d");
  context.fillStyle = color(name);
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data;
}
const state = { group: 0, layer: 0, head: 0 };
const weight = (group, layer, head, q, k) => {
  const [, heads, queries, keys] = group.shape;
  return group.values[((layer * heads + head) * queries + q) * keys + k] / 65535;
};
function paint(context, group, layer, head, x, y, size, [from, to]) {
  const [, , queries, keys] = group.shape;
  const image = new ImageData(keys, queries);
  for (let q = 0; q < queries; q++) {
    for (let k = 0; k < keys; k++) {
      const share = Math.sqrt(weight(group, layer, head, q, k)); // so that small weights can be seen
      const at = 4 * (q * keys + k);
      for (let c = 0; c < 3; c++) image.data[at + c] = from[c] + share * (to[c] - from[c]);
      image.data[at + 3] = 255;
    }
  }
  const buffer = element("canvas", { width: keys, height: queries });
  buffer.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(buffer, x, y, size[0], size[1]);
}
function sharp(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  canvas.style.width = `${width}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}
const wallCell = (group) => Math.max(12, Math.min(84, Math.floor(Math.min(500 / group.shape[1], 640 / group.shape[0]))));
function drawWall() {
  const group = data.maps[state.group];
  const [layers, heads] = group.shape;
  const cell = wallCell(group);
  const context = sharp($("#wall"), heads * cell, layers * cell);
  const palette = [rgb("--raised"), rgb("--accent")];
  const [chosenLine, line] = [color("--minus"), color("--line")];
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      paint(context, group, layer, head, head * cell + 1, layer * cell + 1, [cell - 2, cell - 2], palette);
      const chosen = layer === state.layer && head === state.head;
      context.strokeStyle = chosen ? chosenLine : line;
      context.lineWidth = chosen ? 2 : 1;
      context.strokeRect(head * cell + 1, layer * cell + 1, cell - 2, cell - 2);
    }
  }
  $("#wall").setAttribute("aria-label", `${layers} layers of ${heads} heads; arrow keys choose one`);
}
function headGeometry(group) {
  const [, , queries, keys] = group.shape;
  const cell = Math.max(4, Math.min(26, Math.floor(460 / Math.max(queries, keys))));
  const named = cell >= 9;
  return { cell, named, margin: named ? 78 : 4 };
}
function drawHead() {
  const group = data.maps[state.group];
  const [, , queries, keys] = group.shape;
  const { cell, named, margin } = headGeometry(group);
  const context = sharp($("#head"), margin + keys * cell, margin + queries * cell);
  paint(context, group, state.layer, state.head, margin, margin, [keys * cell, queries * cell], [rgb("--raised"), rgb("--accent")]);
  context.strokeStyle = color("--line");
  context.strokeRect(margin, margin, keys * cell, queries * cell);
  context.fillStyle = color("--soft");
  context.font = `${Math.min(12, cell)}px ${getComputedStyle(document.body).getPropertyValue("--mono")}`;
  const short = (text) => (text.length > 10 ? `${text.slice(0, 9)}…` : text);
  if (named) {
    context.textBaseline = "middle";
    context.textAlign = "right";
    group.queries.forEach((name, q) => context.fillText(short(label(name)), margin - 5, margin + (q + 0.5) * cell));
    context.textAlign = "left";
    group.keys.forEach((name, k) => {
      context.save();
      context.translate(margin + (k + 0.5) * cell, margin - 5);
      context.rotate(-Math.PI / 2);
      context.fillText(short(label(name)), 0, 0);
      context.restore();
    });
  }
  const name = group.shape[1] === 1 && group.shape[0] === 1 ? group.name : `${group.name}, layer ${state.layer}, head ${state.head}`;
  $("#head-name").textContent = name;
  $("#head").setAttribute("aria-label", `attention weights of ${name}`);
}
function choose(changes) {
  Object.assign(state, changes);
  const [layers, heads] = data.maps[state.group].shape;
  state.layer = Math.max(0, Math.min(layers - 1, state.layer));
  state.head = Math.max(0, Math.min(heads - 1, state.head));
  document.querySelectorAll(".tabs button").forEach((button, i) => button.setAttribute("aria-selected", i === state.group));
  drawWall();
  drawHead();
}
function readCell(event) {
  const group = data.maps[state.group];
  const { cell, margin } = headGeometry(group);
  const box = $("#head").getBoundingClientRect();
  const k = Math.floor((event.clientX - box.left - margin) / cell);
  const q = Math.floor((event.clientY - box.top - margin) / cell);
  if (q < 0 || k < 0 || q >= group.shape[2] || k >= group.shape[3]) return;
  const w = weight(group, state.layer, state.head, q, k).toFixed(4);
  $("#cell").textContent = `“${label(group.queries[q])}” (${q}) attends to “${label(group.keys[k])}” (${k}): ${w}`;
}
async function showAttention() {
  if (!data.maps.length) return;
  $("#attention").hidden = false;
  for (const group of data.maps) group.values = await unpack(group.data);
  data.maps.forEach((group, i) => {
    const button = element("button", { textContent: group.name, onclick: () => choose({ group: i }) });
    button.setAttribute("role", "tab");
    $(".tabs").append(button);
  });
  $(".tabs").hidden = data.maps.length === 1;
  $("#wall").onclick = (event) => {
    const cell = wallCell(data.maps[state.group]) * ($("#wall").getBoundingClientRect().width / parseFloat($("#wall").style.width));
    choose({ layer: Math.floor(event.offsetY / cell), head: Math.floor(event.offsetX / cell) });
  };
  $("#wall").onkeydown = (event) => {
    const [layer, head] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if (!layer && !head) return;
    event.preventDefault();
    choose({ layer: state.layer + layer, head: state.head + head });
  };
  $("#head").onpointermove = readCell;
  choose({ group: data.maps.length - 1 });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choose({}));
}

showText();
showPrediction();
showEffect();
showEffects();
showLens();
showAttribution();
showAttention();
