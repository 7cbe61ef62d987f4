// The page: its form, its texts, colours, keys, and the history.

import { ask } from "./api.js";
import { History } from "./history.js";
import * as panel from "./panel.js";
import { element, Sample } from "./sample.js";

const $ = (id) => document.getElementById(id);
const form = $("form");
const isNarrow = () => matchMedia("(max-width: 760px)").matches;
const SETTINGS = "gptlit:settings";
const NAMES = [
  "max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p",
  "repetition_penalty", "frequency_penalty", "presence_penalty",
];
const LEGENDS = {
  none: "",
  surprise: "the stronger, the less likely: below 50%, 10%, 1% and 0.1%",
  copied: "stretches of 50 and more characters that stand in the training text",
};

let samples = [];
let entry = null; // of the history
let history = null;
let copiesReason = null; // why copies can't be found

// ---------------------------------------------------------------- settings

function fieldsOf(names) {
  return Object.fromEntries(names.map((name) => [name, form.elements[name].value]));
}

function settings() {
  const found = {};
  for (const name of NAMES) {
    if (form.elements[name].value !== "") found[name] = Number(form.elements[name].value);
  }
  const lines = form.elements.stop.value.split("\n").filter((line) => line !== "");
  const escapes = { n: "\n", t: "\t", "\\": "\\" };
  if (lines.length) {
    found.stop = lines.map((line) => line.replace(/\\([nt\\])/g, (_, sign) => escapes[sign]));
  }
  return found;
}

function fill(fields) {
  for (const [name, value] of Object.entries(fields)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
}

function keepSettings() {
  const names = [...NAMES, "stop", "seed", "n", "prompt"];
  localStorage.setItem(SETTINGS, JSON.stringify(fieldsOf(names)));
}

// ---------------------------------------------------------------- texts

const on = { changed, fails };

function fails(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  const field = error.param && form.elements[error.param.split(".")[0]];
  form.querySelectorAll("[aria-invalid]").forEach((each) => each.removeAttribute("aria-invalid"));
  if (field instanceof HTMLElement) {
    field.setAttribute("aria-invalid", "true");
    if (field.closest("details")) field.closest("details").open = true;
    field.focus();
  }
}

function forgetError() {
  $("error").hidden = true;
  form.querySelectorAll("[aria-invalid]").forEach((each) => each.removeAttribute("aria-invalid"));
}

function changed(sample) {
  const isRunning = samples.some((each) => each.isRunning);
  $("stop").disabled = !isRunning;
  $("continue").disabled = isRunning || !samples.some((each) => each.tokens.length);
  if (sample && !sample.isRunning && sample.tokens.length) {
    remember();
    if (colour() === "copied") findCopies([sample]);
  }
}

function write() {
  forgetError();
  if (!form.reportValidity()) return;
  samples.forEach((sample) => sample.stop());
  const prompt = form.elements.prompt.value;
  const n = Number(form.elements.n.value);
  const seed = Number(form.elements.seed.value);
  const many = Array.from({ length: n }, (_, i) => new Sample(i, prompt, seed + i, n, on));
  entry = { id: crypto.randomUUID?.() ?? String(Math.random()), time: Date.now(), prompt };
  place(many);
  const chosen = settings();
  many.forEach((sample) => sample.begin(chosen));
  keepSettings();
  if (isNarrow()) $("texts").scrollIntoView();
}

function place(many) {
  panel.hide();
  samples = many;
  $("samples").replaceChildren(...many.map((sample) => sample.root));
  $("samples").dataset.n = Math.min(many.length, 4);
  $("hint").hidden = many.length > 0;
  many.forEach(wire);
  changed(null);
}

function wire(sample) {
  const { buttons, text } = sample;
  buttons.continue.addEventListener("click", () => writeOn(sample, sample.tokens.length));
  buttons.regenerate.addEventListener("click", () => writeOn(sample, sample.nPrompt));
  buttons.copy.addEventListener("click", () => copy(sample.whole, buttons.copy));
  buttons.download.addEventListener("click", () => download(sample));
  text.addEventListener("mouseover", (event) => {
    if (event.target.token) panel.enter(event.target, writeOn);
  });
  text.addEventListener("mouseleave", panel.leave);
  text.addEventListener("click", (event) => {
    if (event.target.token) panel.show(event.target, writeOn, true);
  });
  text.addEventListener("focusin", (event) => {
    text.querySelectorAll('[tabindex="0"]').forEach((each) => (each.tabIndex = -1));
    event.target.tabIndex = 0;
    event.target.setAttribute("role", "button");
    if (event.target.matches(":focus-visible")) panel.show(event.target, writeOn, false);
  });
  text.addEventListener("focusout", panel.leave);
  text.addEventListener("keydown", (event) => move(event, sample));
}

/** Move among the tokens of a text, or act on the one that has the focus. */
function move(event, sample) {
  const at = sample.tokens.indexOf(event.target.token);
  const last = sample.tokens.length - 1;
  const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
  if (next !== undefined) {
    sample.tokens[Math.min(Math.max(next, 0), last)].span.focus();
  } else if (event.key === "Enter" || event.key === " ") {
    panel.show(event.target, writeOn, true);
  } else if (event.key === "r" && !event.ctrlKey && !event.metaKey) {
    writeOn(sample, at);
  } else {
    return;
  }
  event.preventDefault();
}

function writeOn(sample, at, chosen = null) {
  forgetError();
  if (!form.reportValidity()) return;
  panel.hide();
  sample.writeFrom(at, settings(), chosen);
  const last = sample.tokens.at(-1);
  if (document.activeElement === document.body && last) last.span.focus({ preventScroll: true });
}

// ---------------------------------------------------------------- colours

const colour = () => form.ownerDocument.querySelector('input[name="colour"]:checked').value;

function showColour() {
  $("samples").dataset.colour = colour();
  $("legend").textContent = LEGENDS[colour()];
  if (colour() === "copied") findCopies(samples);
}

async function findCopies(some) {
  if (copiesReason === null) $("legend").textContent = "looking into the training text …";
  for (const sample of some.filter((each) => !each.isRunning && !each.copied)) {
    try {
      copiesReason = (await sample.findCopies()) ?? copiesReason;
    } catch (error) {
      fails(error);
    }
  }
  if (colour() !== "copied") return;
  const isMissing = `the training text is not here, so copies can't be found: ${copiesReason}`;
  $("legend").textContent = copiesReason === null ? LEGENDS.copied : isMissing;
}

// ---------------------------------------------------------------- copy, download, history

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // a page that isn't of this machine may not use the clipboard otherwise
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function download(sample) {
  const file = new Blob([sample.whole], { type: "text/plain" });
  const link = element("a", { href: URL.createObjectURL(file) });
  link.download = `gptlit-${sample.seed}.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function remember() {
  if (!history || !entry) return;
  const saved = samples.filter((each) => each.tokens.length).map((each) => each.saved());
  const fields = fieldsOf([...NAMES, "stop", "seed", "n"]);
  history.save({ ...entry, fields, samples: saved });
  showHistory();
}

function showHistory() {
  const entries = history.entries.map((each) => {
    const text = each.samples[0]?.tokens.map((token) => token[1]).join("") ?? each.prompt;
    const start = text.trim().replace(/\s+/g, " ").slice(0, 60);
    const time = new Date(each.time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const parts = [element("span", { textContent: start }), element("small", { textContent: time })];
    const open = element("button", { type: "button", className: "entry" }, ...parts);
    open.addEventListener("click", () => restore(each));
    const remove = element("button", { type: "button", textContent: "×", title: "Remove" });
    remove.setAttribute("aria-label", `Remove ${start}`);
    remove.addEventListener("click", () => {
      history.remove(each.id);
      showHistory();
    });
    return element("li", {}, open, remove);
  });
  $("entries").replaceChildren(...entries);
  $("clear").hidden = !entries.length;
}

function restore(saved) {
  samples.forEach((sample) => sample.stop());
  const { id, time, prompt } = saved;
  entry = { id, time, prompt };
  fill({ ...saved.fields, prompt });
  place(saved.samples.map((each, index) => Sample.restored(index, each, on)));
  showColour();
}

// ---------------------------------------------------------------- start

form.addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
const stop = () => samples.forEach((sample) => sample.stop());
$("stop").addEventListener("click", () => {
  stop();
  samples.forEach((sample) => changed(sample));
});
$("continue").addEventListener("click", () => {
  samples.forEach((sample) => writeOn(sample, sample.tokens.length));
});
$("models").addEventListener("change", () => {
  location.search = new URLSearchParams({ model: $("models").value });
});
$("new_seed").addEventListener("click", () => {
  form.elements.seed.value = Math.floor(Math.random() * 2 ** 31);
});
$("clear").addEventListener("click", () => {
  history.clear();
  showHistory();
});
document.querySelectorAll('input[name="colour"]').forEach((each) => {
  each.addEventListener("change", showColour);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    write();
  } else if (event.key === "Escape") {
    if (panel.current()) panel.hide();
    else if (!$("stop").disabled) $("stop").click();
  }
});
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest?.("#panel, .token")) panel.hide();
});
addEventListener("resize", panel.hide);
addEventListener("scroll", panel.hide, { passive: true });

if (isNarrow()) $("settings").open = false;
try {
  fill(JSON.parse(localStorage.getItem(SETTINGS)) ?? {});
} catch {
  localStorage.removeItem(SETTINGS);
}
showColour();
ask(`api/about${location.search}`).then((about) => {
  const { text, state, parameters, device } = about.lines;
  const parts = [about.id, text, `${parameters} parameters`, state, device];
  $("model").textContent = parts.join(" · ");
  const names = about.models.map((value) => element("option", { value, textContent: value }));
  $("models").replaceChildren(...names);
  $("models").value = about.id;
  $("models").hidden = names.length === 1;
  document.title = `${about.id} · gptlit`;
  form.elements.max_tokens.max = about.max_tokens;
  history = new History(about.id);
  showHistory();
}, fails);
