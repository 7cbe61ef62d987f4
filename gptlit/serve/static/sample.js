// A text on the page: its tokens, how they are shown, and its way from one request to the next.

import { ask, stream } from "./api.js";

export const LIKELIEST = 8; // alternatives of a token
const MARKS = [0.5, 0.1, 0.01, 0.001]; // probabilities below which a token is more surprising

export function element(tag, about = {}, ...children) {
  const made = Object.assign(document.createElement(tag), about);
  made.append(...children);
  return made;
}

const characters = (text) => [...text].length; // as Python counts them

export class Sample {
  /**
   * @param index its place
   * @param prompt the prompt as typed
   * @param seed the seed of its first request
   * @param step added to the seed for each further request
   * @param on functions that are called: changed(sample), and fails(error)
   */
  constructor(index, prompt, seed, step, on) {
    Object.assign(this, { index, prompt, seed, step, on });
    this.tokens = []; // {id, piece, logprob, likeliest, isPrompt, isChosen}
    this.finish = null;
    this.copied = null;
    this.controller = null;
    this.text = element("div", { className: "text" });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", `Text of sample ${index + 1}`);
    this.state = element("span", { className: "state" });
    this.buttons = {};
    const buttons = ["continue", "regenerate", "copy", "download"].map((name) => {
      const label = name[0].toUpperCase() + name.slice(1);
      return (this.buttons[name] = element("button", { type: "button", textContent: label }));
    });
    const head = element("div", { className: "head" }, this.state, ...buttons);
    this.root = element("article", { className: "sample" }, head, this.text);
    this.showState();
  }

  get isRunning() {
    return this.controller !== null;
  }

  get whole() {
    return this.tokens.map((token) => token.piece).join("");
  }

  get nPrompt() {
    return this.tokens.filter((token) => token.isPrompt).length;
  }

  /** Write the first text, after the prompt. */
  begin(settings) {
    // the first part of the reply has all tokens of the prompt, if there is one
    return this.request({ ...settings, prompt: this.prompt, echo: true }, this.prompt !== "");
  }

  /** Keep the tokens before a place, then a chosen one if there is one, and write on. */
  writeFrom(place, settings, chosen = null) {
    this.stop();
    this.tokens.slice(place).forEach((token) => token.span.remove());
    this.tokens.length = place;
    if (chosen) this.add({ ...chosen, isChosen: true });
    this.seed += this.step;
    const ids = this.tokens.map((token) => token.id);
    return this.request({ ...settings, prompt: ids.length ? ids : "" }, false);
  }

  async request(body, isFirst) {
    const controller = (this.controller = new AbortController());
    this.finish = this.copied = null;
    this.n = 0;
    this.began = performance.now();
    this.showState();
    this.on.changed(this);
    const settings = { seed: this.seed, logprobs: LIKELIEST, return_token_ids: true };
    try {
      let nLeft = -1; // tokens of the prompt to come
      await stream({ ...body, ...settings, n: 1 }, controller.signal, (choice) => {
        if (this.controller !== controller) return;
        const { token_logprobs: logprobs, likeliest } = choice.logprobs;
        if (isFirst && !this.tokens.length) nLeft = choice.token_ids.length;
        choice.token_ids.forEach((id, at) => {
          const isPrompt = nLeft-- > 0;
          this.n += isPrompt ? 0 : 1;
          const about = { logprob: logprobs[at], likeliest: likeliest[at], isPrompt };
          this.add({ id, piece: choice.pieces[at], ...about });
        });
        this.finish = choice.finish_reason ?? this.finish;
        this.showState();
      });
    } catch (error) {
      if (this.controller !== controller) return; // it was replaced
      if (error.name !== "AbortError") {
        this.finish = "error";
        this.on.fails(error);
      } else {
        this.finish = "stopped";
      }
    }
    if (this.controller === controller) {
      this.controller = null;
      this.showState();
      this.on.changed(this);
    }
  }

  stop() {
    const controller = this.controller;
    this.controller?.abort();
    if (controller) this.finish = "stopped";
    this.controller = null;
    this.showState();
  }

  add(token) {
    const span = element("span", { className: "token", textContent: token.piece });
    span.tabIndex = this.tokens.length ? -1 : 0;
    token.span = span;
    span.token = token;
    span.sample = this;
    if (token.isPrompt) span.classList.add("prompt");
    if (token.isChosen) span.classList.add("chosen");
    if (token.piece.endsWith("\n")) span.classList.add("line_end");
    if (!token.piece) span.classList.add("part");
    if (typeof token.logprob === "number") {
      span.dataset.surprise = MARKS.filter((mark) => token.logprob < Math.log(mark)).length;
    }
    this.tokens.push(token);
    this.text.append(span);
  }

  showState() {
    const states = { stop: "ended", length: "", stopped: "stopped", error: "failed" };
    const seconds = (performance.now() - (this.began ?? 0)) / 1000;
    const speed = this.n > 5 && this.isRunning ? `${Math.round(this.n / seconds)} tokens/s` : "";
    const count = `${this.tokens.length - this.nPrompt} tokens`;
    const state = this.isRunning ? speed || "writing" : (states[this.finish] ?? "");
    const parts = [`seed ${this.seed}`, count, state, this.copied?.shown];
    this.state.textContent = parts.filter(Boolean).join(" · ");
    this.root.classList.toggle("running", this.isRunning);
    this.buttons.continue.disabled = this.isRunning || !this.tokens.length;
  }

  /** Mark what the text has copied; returns the reason if that can't be found. */
  async findCopies() {
    const text = this.whole;
    const n_prompt = characters(this.tokens.filter((t) => t.isPrompt).map((t) => t.piece).join(""));
    const found = await ask("api/copied", { text, n_prompt });
    if (text !== this.whole) return null;
    if (!found.available) return found.reason;
    let place = 0;
    for (const token of this.tokens) {
      const end = place + characters(token.piece);
      const isCopied = found.copied.some(([first, last]) => first < end && place < last);
      token.span.classList.toggle("copied", isCopied);
      place = end;
    }
    const share = found.novelty === null ? "short" : `novelty ${found.novelty.toFixed(2)}`;
    const longest = found.longest_copy ? `, longest copy ${found.longest_copy}` : "";
    this.copied = { shown: share + longest };
    this.showState();
    return null;
  }

  /** Return the likeliest tokens at a place, which a text of the history doesn't have. */
  async likeliestAt(place) {
    const token = this.tokens[place];
    if (!token.likeliest?.length && place) {
      const prompt = this.tokens.slice(0, place).map((each) => each.id);
      const how = { max_tokens: 1, temperature: 0, logprobs: LIKELIEST, return_token_ids: true };
      const answer = await ask("v1/completions", { prompt, ...how });
      token.likeliest = answer.choices[0].logprobs?.likeliest[0] ?? [];
    }
    return token.likeliest ?? [];
  }

  saved() {
    const tokens = this.tokens.map(({ id, piece, logprob, isPrompt, isChosen }) => [
      id, piece, logprob === undefined || logprob === null ? null : Number(logprob.toFixed(3)),
      (isPrompt ? 1 : 0) + (isChosen ? 2 : 0),
    ]);
    return { prompt: this.prompt, seed: this.seed, step: this.step, finish: this.finish, tokens };
  }

  static restored(index, saved, on) {
    const sample = new Sample(index, saved.prompt, saved.seed, saved.step, on);
    for (const [id, piece, logprob, kind] of saved.tokens) {
      sample.add({ id, piece, logprob, isPrompt: (kind & 1) > 0, isChosen: (kind & 2) > 0 });
    }
    sample.finish = saved.finish;
    sample.showState();
    return sample;
  }
}
