// The panel of a token: its probability, what else could stand there, and writing anew from it.

import { element } from "./sample.js";

const panel = document.getElementById("panel");
const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share >= 10 ? share.toFixed(0) : share >= 0.1 ? share.toFixed(1) : "<0.1"}%`;
};

/** Show a token's text with its whitespace. */
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣");

let shown = null; // the span of the token
let isPinned = false;
let timer = 0;

export const current = () => shown;

export function hide() {
  clearTimeout(timer);
  if (shown) shown.classList.remove("current");
  shown = null;
  isPinned = false;
  panel.hidden = true;
}

/** Hide it soon, unless the mouse comes back to it or to a token. */
export function leave() {
  clearTimeout(timer);
  if (!isPinned) timer = setTimeout(hide, 250);
}

export function enter(span, choose) {
  clearTimeout(timer);
  if (!isPinned && span !== shown) timer = setTimeout(() => show(span, choose, false), 80);
}

/**
 * @param span the token's
 * @param choose called with a sample, a place, and a token or null
 * @param pin whether it stays open, and takes the focus
 */
export async function show(span, choose, pin) {
  hide();
  shown = span;
  isPinned = pin;
  span.classList.add("current");
  const { token, sample } = span;
  const place = sample.tokens.indexOf(token);
  const again = element("button", { type: "button", textContent: "Regenerate from here" });
  again.addEventListener("click", () => choose(sample, place, null));
  const known = typeof token.logprob === "number" ? ` ${percent(token.logprob)}` : "";
  const name = element("strong", { textContent: visible(token.piece) || "·" });
  const head = element("p", {}, name, known);
  const list = element("ul");
  panel.replaceChildren(head, again, list);
  panel.hidden = false;
  position(span);
  if (pin) again.focus({ preventScroll: true });
  const likeliest = await sample.likeliestAt(place).catch(() => []);
  if (shown !== span) return;
  for (const [id, text, logprob] of likeliest) {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * Math.exp(logprob)}%`;
    const piece = text.startsWith("bytes:") ? "" : text;
    const label = piece ? visible(piece) : text.replace("bytes:", "");
    const parts = [bar, element("span", { textContent: label })];
    parts.push(element("span", { textContent: percent(logprob) }));
    const button = element("button", { type: "button", className: "alternative" }, ...parts);
    if (id === token.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choose(sample, place, { id, piece, logprob, likeliest }));
    list.append(element("li", {}, button));
  }
  position(span);
}

/** Put the panel below the token, or above it where there is more room. */
function position(span) {
  const box = [...span.getClientRects()].at(-1) ?? span.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = panel;
  const left = Math.min(Math.max(8, box.left - 12), innerWidth - width - 8);
  const isBelow = box.bottom + height + 8 < innerHeight || box.top < height + 8;
  panel.style.left = `${left}px`;
  panel.style.top = `${isBelow ? box.bottom + 4 : box.top - height - 4}px`;
}

panel.addEventListener("mouseenter", () => clearTimeout(timer));
panel.addEventListener("mouseleave", leave);
panel.addEventListener("keydown", (event) => {
  const buttons = [...panel.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = at + (event.key === "ArrowDown" ? 1 : -1);
    buttons[(next + buttons.length) % buttons.length].focus();
    event.preventDefault();
  } else if (event.key === "Escape") {
    shown.focus(); // which shows it, too
    hide();
    event.preventDefault();
    event.stopPropagation();
  }
});
