"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const T = data.ids.length;
const MEAN = data.heads; // number of the "head" that is the mean of all
const state = { selected: T - 1, shown: 0, layer: 0, head: 0, colour: "surprise", cell: null };
const find = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const { dataset = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
};
const name = (id) => data.tokens[id];
const quoted = (position) => (data.started && position === 0 ? "the start" : `‘${name(data.ids[position])}’`);
const bits = (nats) => nats / Math.LN2;
const percent = (share) =>
  share >= 0.0995 ? `${Math.round(share * 100)}%` : share >= 5e-4 ? `${(share * 100).toFixed(1)}%` : "<0.1%";

// ------------------------------------------------------------------ text

const COLOURS = {
  surprise: { unit: " bits", of: (i) => (i > 0 && i < T ? bits(data.nats[i - 1]) : null) },
  entropy: { unit: " bits", of: (i) => (i > 0 ? bits(data.entropy[i - 1]) : null) },
  attention: { unit: "", of: (i) => (i < T ? weight(state.layer, state.head, Math.min(state.shown, T - 1), i) : null) },
};

function makeStrip() {
  const strip = find("strip");
  for (let i = 0; i <= T; i++) {
    const span = make("span", { tabIndex: -1, dataset: { token: i } });
    span.setAttribute("role", "option");
    if (i === T || (data.started && i === 0)) {
      span.className = "outside";
      span.textContent = i ? "next" : "start";
    } else {
      const piece = data.pieces[i - data.started];
      span.textContent = piece.replaceAll("\n", "⏎\n") || "·";
    }
    span.setAttribute("aria-label", spoken(i));
    strip.append(span, i === 0 && data.started ? " " : "");
  }
  const spans = [...strip.querySelectorAll("[data-token]")];
  const at = (event) => event.target.closest("[data-token]")?.dataset.token;
  strip.addEventListener("pointerover", (event) => at(event) !== undefined && show(Number(at(event))));
  strip.addEventListener("pointerleave", () => show(state.selected));
  strip.addEventListener("click", (event) => at(event) !== undefined && select(Number(at(event))));
  strip.addEventListener("focusin", (event) => at(event) !== undefined && select(Number(at(event)), false));
  strip.addEventListener("keydown", (event) => {
    const to = moved(event.key, state.selected, T + 1);
    if (to === null) return;
    event.preventDefault();
    spans[to].focus();
  });
  return spans;
}

/** The description of a token for those who don't see its details. */
function spoken(i) {
  if (i === T) return `next: likeliest ‘${name(data.best.ids[T - 1][0])}’ ${percent(data.best.probability[T - 1][0])}`;
  if (i === 0) return quoted(0);
  const likeliest = `‘${name(data.best.ids[i - 1][0])}’ ${percent(data.best.probability[i - 1][0])}`;
  return `${quoted(i)} ${percent(Math.exp(-data.nats[i - 1]))}, rank ${data.rank[i - 1]}, likeliest ${likeliest}`;
}

function moved(key, from, n) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -n, End: n };
  return key in steps ? Math.max(0, Math.min(n - 1, from + steps[key])) : null;
}

function select(i, focus = true) {
  state.selected = i;
  if (focus) spans[i].focus();
  show(i);
  const cell = document.querySelector("#grid td.column");
  if (!cell) return;
  const grid = find("grid");
  const before = cell.getBoundingClientRect().left - grid.getBoundingClientRect().left;
  grid.scrollLeft += before - grid.clientWidth / 2;
  describeLens(cell.dataset);
}

function show(i) {
  state.shown = i;
  state.cell = null;
  paintStrip();
  paintDetails();
  paintMap();
  for (const cell of document.querySelectorAll("#grid .column")) cell.classList.remove("column");
  // the prediction of a token is made at the position before it
  for (const cell of document.querySelectorAll(`#grid [data-position="${i - 1}"]`)) cell.classList.add("column");
}

function paintStrip() {
  const { of, unit } = COLOURS[state.colour];
  const values = spans.map((_, i) => of(i));
  const most = Math.max(...values.filter((value) => value !== null), 1e-9);
  spans.forEach((span, i) => {
    span.style.background = values[i] === null ? "" : heat(values[i] / most);
    span.setAttribute("aria-selected", i === state.shown);
    span.tabIndex = i === state.selected ? 0 : -1;
  });
  find("most").textContent = unit ? `${most.toFixed(1)}${unit}` : percent(most);
}

const heat = (share) =>
  `color-mix(in srgb, var(--heat) calc(var(--strongest) * ${share.toFixed(3)}), transparent)`;

// ------------------------------------------------------------------ details of a token

function bars(rows, kind) {
  const most = Math.max(...rows.map((row) => row.value), 1e-9);
  return rows.map((row) => {
    const bar = make("i");
    bar.style.width = `${Math.max(0, (100 * row.value) / most)}%`;
    const token = make("span", { className: "token", textContent: row.name, title: row.name });
    return make("li", { className: `${kind} ${row.own ? "own" : ""}` }, token, make("span", {}, bar), make("b", { textContent: row.shown }));
  });
}

function paintDetails() {
  const i = state.shown;
  const facts = [];
  find("chosen").textContent = i === T ? "After the text" : data.started && i === 0 ? "The start" : `Token ${quoted(i)}`;
  if (i < T) facts.push(["id", data.ids[i]]);
  if (i > 0 && i < T) {
    facts.push(["probability", percent(Math.exp(-data.nats[i - 1]))], ["rank", data.rank[i - 1]]);
    facts.push(["surprise", `${bits(data.nats[i - 1]).toFixed(2)} bits`]);
  }
  if (i > 0) facts.push(["entropy", `${bits(data.entropy[i - 1]).toFixed(2)} bits`]);
  find("facts").replaceChildren(
    ...facts.flatMap(([term, value]) => [make("dt", { textContent: term }), make("dd", { textContent: value })]),
  );
  const likeliest = i > 0 ? data.best.ids[i - 1].map((id, n) => ({ id, share: data.best.probability[i - 1][n] })) : [];
  if (i > 0 && i < T && !likeliest.some(({ id }) => id === data.ids[i])) {
    likeliest.push({ id: data.ids[i], share: Math.exp(-data.nats[i - 1]) });
  }
  const rows = likeliest.map(({ id, share }) => ({ name: name(id), value: share, shown: percent(share), own: id === data.ids[i] }));
  find("best").replaceChildren(...bars(rows, "share"));
  find("unpredicted").hidden = i > 0;
  const near = i < T ? data.near[data.ids[i]] : { ids: [] };
  find("near").replaceChildren(
    ...bars(near.ids.map((id, n) => ({ name: name(id), value: near.cosine[n], shown: near.cosine[n].toFixed(2) })), "near"),
  );
  find("neighbours").hidden = !near.ids.length;
}

// ------------------------------------------------------------------ attention

const bytes = Uint8Array.from(atob(data.maps), (character) => character.charCodeAt(0));
const AREA = (T * (T + 1)) / 2;

function weight(layer, head, query, key) {
  if (key > query || !data.layers) return 0;
  const at = (query * (query + 1)) / 2 + key;
  if (head < MEAN) return bytes[(layer * data.heads + head) * AREA + at] / 255;
  let sum = 0;
  for (let each = 0; each < data.heads; each++) sum += bytes[(layer * data.heads + each) * AREA + at];
  return sum / data.heads / 255;
}

const rgb = (variable) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(variable).trim().slice(1);
  return [0, 2, 4].map((from) => parseInt(hex.slice(from, from + 2), 16));
};

/** The colours of weights from 0 to 255, by their square root, so that small ones are seen. */
function palette() {
  const [back, front] = [rgb("--background"), rgb("--0")];
  const shares = Array.from({ length: 256 }, (_, value) => Math.sqrt(value / 255));
  return shares.map((share) => back.map((value, channel) => value + (front[channel] - value) * share));
}

function image(layer, head, colours) {
  const canvas = make("canvas", { width: T, height: T });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(T, T);
  let at = (layer * data.heads + head) * AREA;
  for (let query = 0; query < T; query++) {
    for (let key = 0; key <= query; key++, at++) {
      const value = head < MEAN ? bytes[at] : Math.round(255 * weight(layer, head, query, key));
      const pixel = 4 * (query * T + key);
      [pixels.data[pixel], pixels.data[pixel + 1], pixels.data[pixel + 2]] = colours[value];
      pixels.data[pixel + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

const map = { canvas: find("map"), margin: 0, top: 0, cell: 1 };

function paintMap() {
  if (!data.layers) return;
  const { canvas } = map;
  const width = canvas.clientWidth;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  const named = width / T >= 9; // pixels of a cell, so that names can be read
  map.margin = named ? 72 : 8;
  map.cell = (width - map.margin - 2) / T;
  map.top = map.margin;
  const height = Math.ceil(map.top + map.cell * T + 2);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.imageSmoothingEnabled = false;
  const side = map.cell * T;
  context.drawImage(image(state.layer, state.head, palette()), map.margin, map.top, side, side);
  const style = getComputedStyle(document.documentElement);
  context.strokeStyle = style.getPropertyValue("--grid");
  context.strokeRect(map.margin, map.top, side, side);
  const query = state.cell ? state.cell.query : Math.min(state.shown, T - 1);
  if (named) paintNames(context, query, style);
  context.strokeStyle = style.getPropertyValue("--1");
  context.lineWidth = 1.5;
  context.strokeRect(map.margin, map.top + query * map.cell, (query + 1) * map.cell, map.cell);
  if (state.cell) {
    context.strokeRect(map.margin + state.cell.key * map.cell, map.top + query * map.cell, map.cell, map.cell);
  }
  describe(query);
}

function paintNames(context, query, style) {
  const size = Math.min(13, Math.max(8, map.cell - 1));
  context.textBaseline = "middle";
  for (let i = 0; i < T; i++) {
    const text = data.started && i === 0 ? "start" : name(data.ids[i]);
    const short = [...text].length > 9 ? `${[...text].slice(0, 8).join("")}…` : text;
    const marked = i === query || i === state.cell?.key;
    context.fillStyle = style.getPropertyValue(marked ? "--1" : "--text");
    context.font = `${marked ? "bold " : ""}${size}px ui-monospace, "DejaVu Sans Mono", monospace`;
    const middle = (i + 0.5) * map.cell;
    context.textAlign = "right";
    context.fillText(short, map.margin - 5, map.top + middle);
    context.save();
    context.translate(map.margin + middle, map.top - 5);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(short, 0, 0);
    context.restore();
  }
}

function describe(query) {
  let text;
  if (state.cell) {
    text = `${quoted(query)} reads ${quoted(state.cell.key)}: ${percent(weight(state.layer, state.head, query, state.cell.key))}`;
  } else {
    const keys = [...Array(query + 1).keys()];
    keys.sort((a, b) => weight(state.layer, state.head, query, b) - weight(state.layer, state.head, query, a));
    const most = keys.slice(0, 3).map((key) => `${quoted(key)} ${percent(weight(state.layer, state.head, query, key))}`);
    text = `${quoted(query)} reads most: ${most.join(", ")}`;
  }
  find("reading").textContent = text;
}

function choose(layer, head) {
  Object.assign(state, { layer, head });
  find("layer").value = layer;
  find("head").value = head;
  for (const button of document.querySelectorAll("#overview button")) {
    const own = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
    button.setAttribute("aria-pressed", own);
    button.tabIndex = own ? 0 : -1;
  }
  paintMap();
  paintStrip();
}

function cellAt(event) {
  const box = map.canvas.getBoundingClientRect();
  const key = Math.floor((event.clientX - box.left - map.margin) / map.cell);
  const query = Math.floor((event.clientY - box.top - map.top) / map.cell);
  return key >= 0 && query >= 0 && query < T && key <= query ? { query, key } : null;
}

function makeMaps() {
  const options = (n, label) => [...Array(n).keys()].map((i) => make("option", { value: i, textContent: label(i) }));
  find("layer").append(...options(data.layers, (i) => `${i + 1} of ${data.layers}`));
  find("head").append(...options(data.heads + (data.heads > 1), (i) => (i < data.heads ? `${i + 1} of ${data.heads}` : "mean of all")));
  for (const id of ["layer", "head"]) {
    find(id).addEventListener("change", () => choose(Number(find("layer").value), Number(find("head").value)));
  }
  map.canvas.addEventListener("pointermove", (event) => { state.cell = cellAt(event); paintMap(); });
  map.canvas.addEventListener("pointerleave", () => { state.cell = null; paintMap(); });
  map.canvas.addEventListener("click", (event) => cellAt(event) && select(cellAt(event).query, false));
  map.canvas.addEventListener("blur", () => { state.cell = null; paintMap(); });
  map.canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    const from = state.cell ?? { query: Math.min(state.shown, T - 1), key: 0 };
    const query = Math.max(0, Math.min(T - 1, from.query + down));
    state.cell = { query, key: Math.max(0, Math.min(query, from.key + right)) };
    paintMap();
  });
}

function makeOverview() {
  const colours = palette();
  const size = data.heads > 8 ? "28px" : data.heads > 4 ? "40px" : "56px";
  find("overview").style.setProperty("--size", size);
  const heads = make("tr", {}, make("th"), ...[...Array(data.heads).keys()].map((i) => make("th", { textContent: i + 1 })));
  const rows = [...Array(data.layers).keys()].map((layer) => {
    const cells = [...Array(data.heads).keys()].map((head) => {
      const button = make("button", { type: "button", tabIndex: -1, dataset: { layer, head } }, image(layer, head, colours));
      button.setAttribute("aria-label", `Layer ${layer + 1}, head ${head + 1}`);
      return make("td", {}, button);
    });
    return make("tr", {}, make("th", { textContent: layer + 1 }), ...cells);
  });
  find("overview").replaceChildren(make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows)));
}

function overviewEvents() {
  const overview = find("overview");
  overview.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(Number(button.dataset.layer), Number(button.dataset.head));
  });
  overview.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    const layer = Math.max(0, Math.min(data.layers - 1, state.layer + down));
    const head = Math.max(0, Math.min(data.heads - 1, Math.min(state.head, data.heads - 1) + right));
    choose(layer, head);
    overview.querySelector(`[data-layer="${layer}"][data-head="${head}"]`).focus();
  });
}

// ------------------------------------------------------------------ logit lens

function makeLens() {
  const positions = [...Array(T).keys()];
  const head = (label, text) => make("tr", {}, make("th", { textContent: label, scope: "row" }), ...positions.map((i) => make("th", { textContent: text(i), dataset: { position: i } })));
  const own = head("after", (i) => (data.started && i === 0 ? "start" : name(data.ids[i])));
  const follows = head("follows", (i) => (i < T - 1 ? name(data.ids[i + 1]) : ""));
  const rows = data.lens.map((layer, n) => {
    const label = n ? `layer ${n}` : "embedding";
    const cells = positions.map((i) => {
      const [id] = layer.ids[i];
      const cell = make("td", { textContent: name(id), tabIndex: -1, dataset: { layer: n, position: i } });
      cell.style.background = heat(Math.sqrt(layer.probability[i][0]));
      if (id === data.ids[i + 1]) cell.className = "right";
      return cell;
    });
    return make("tr", {}, make("th", { textContent: label, scope: "row" }), ...cells);
  });
  const table = make("table", {}, make("thead", {}, own), make("tbody", {}, ...rows.reverse(), follows));
  find("grid").replaceChildren(table);
  const first = table.querySelector("td");
  first.tabIndex = 0;
  let focused = first;
  const about = (target) => target.closest("td") && describeLens(target.closest("td").dataset);
  table.addEventListener("pointerover", (event) => about(event.target));
  table.addEventListener("focusin", (event) => {
    focused.tabIndex = -1;
    focused = event.target.closest("td");
    focused.tabIndex = 0;
    about(focused);
  });
  table.addEventListener("click", (event) => event.target.closest("td")?.focus());
  table.addEventListener("keydown", (event) => {
    const { layer, position } = focused.dataset;
    const [up, right] = { ArrowDown: [-1, 0], ArrowUp: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (up === undefined) return;
    event.preventDefault();
    const to = `td[data-layer="${Number(layer) + up}"][data-position="${Number(position) + right}"]`;
    table.querySelector(to)?.focus();
  });
}

function describeLens({ layer, position }) {
  const own = data.lens[layer];
  const i = Number(position);
  const likeliest = own.ids[i].map((id, n) => `‘${name(id)}’ ${percent(own.probability[i][n])}`);
  const follows = i < T - 1 ? `; ‘${name(data.ids[i + 1])}’, which follows, ${percent(own.next[i])}` : "";
  const place = Number(layer) ? `Layer ${layer}` : "The embedding";
  find("lens-about").textContent = `${place}, after ${quoted(i)}: ${likeliest.join(", ")}${follows}`;
}

// ------------------------------------------------------------------ start

const spans = makeStrip();
for (const radio of document.querySelectorAll("[name=colour]")) {
  radio.addEventListener("change", () => { state.colour = radio.value; paintStrip(); });
}
if (data.layers) {
  makeMaps();
  makeOverview();
  overviewEvents();
  choose(data.layers - 1, 0);
}
makeLens();
select(state.selected, false);
new ResizeObserver(() => paintMap()).observe(find("attention") ?? document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (!data.layers) return;
  makeOverview();
  choose(state.layer, state.head);
});
