// Requests to the server that the page comes from.

const KEY = "gptlit:key";
const model = new URLSearchParams(location.search).get("model"); // of this page
const RETRY_MS = 500; // after which a server that was busy is asked again

/** An error of the server, with its status and the parameter that is wrong. */
export class ServerError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

async function send(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const how = { headers, signal, method: body === undefined ? "GET" : "POST" };
  if (body !== undefined) how.body = JSON.stringify(model ? { ...body, model } : body);
  const answer = await fetch(path, how);
  if (answer.ok) return answer;
  if (answer.status === 429) {
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    return send(path, body, signal); // which fails if it was stopped meanwhile
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401 && (await askForKey())) return send(path, body, signal);
  throw new ServerError(answer.status, content.error);
}

let asking = null;

/** Ask for the server's key once, also for several requests; false if there is none. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("ask_key");
    const input = document.getElementById("key");
    dialog.addEventListener("close", () => {
      asking = null;
      if (input.value) sessionStorage.setItem(KEY, input.value);
      resolve(Boolean(input.value));
      input.value = "";
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** Call `take` with each choice of a streamed completion, as it comes. */
export async function stream(body, signal, take) {
  const answer = await send("v1/completions", { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") continue;
      const content = JSON.parse(data);
      if (content.error) throw new ServerError(500, content.error);
      content.choices.forEach(take);
    }
  }
}
