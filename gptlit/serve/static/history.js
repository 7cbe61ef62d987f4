// The texts of earlier requests, kept in this browser, for each model.

const MOST = 40;

export class History {
  constructor(model) {
    this.key = `gptlit:history:${model}`;
  }

  get entries() {
    try {
      return JSON.parse(localStorage.getItem(this.key)) ?? [];
    } catch {
      return [];
    }
  }

  /** Put an entry in the place of the one with its id, or first; the oldest leave. */
  save(entry) {
    const entries = this.entries;
    const place = entries.findIndex((each) => each.id === entry.id);
    if (place >= 0) entries[place] = entry;
    else entries.unshift(entry);
    this.write(entries.slice(0, MOST));
  }

  remove(id) {
    this.write(this.entries.filter((each) => each.id !== id));
  }

  clear() {
    localStorage.removeItem(this.key);
  }

  write(entries) {
    while (entries.length) {
      try {
        localStorage.setItem(this.key, JSON.stringify(entries));
        return;
      } catch {
        entries.pop(); // the browser's room is full
      }
    }
    this.clear();
  }
}
