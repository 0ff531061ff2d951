// Talking to the server that this page came from.

const KEY = "llmctl.key"; // only until the tab is closed
const BROKEN = "The answer broke off: the connection to the server is gone.";

export class Refused extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Refused(body?.error?.message ?? `The server answered ${response.status}.`, response.status, body?.error?.code);
  }
  return response;
}

/** The name of the model that is served. */
export async function modelName() {
  const { data } = await (await ask("/v1/models")).json();
  return data[0].id;
}

/**
 * One answer, piece by piece: {text, reasoning, finish, usage}, each where there is something new.
 * @param {object} body Of /v1/chat/completions, without what makes it stream.
 * @param {AbortSignal} signal Ends it.
 */
export async function* answer(body, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Refused(BROKEN, 0);
    });
    buffered += value ?? "";
    const events = buffered.split("\n\n");
    buffered = done ? "" : events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message, 500);
      const choice = chunk.choices?.[0];
      yield {
        text: choice?.delta?.content ?? "",
        reasoning: choice?.delta?.reasoning_content ?? "",
        finish: choice?.finish_reason ?? null,
        usage: chunk.usage ?? null,
      };
    }
    if (done) throw new Refused(BROKEN, 0);
  }
}
