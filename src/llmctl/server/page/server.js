// Requests to the server of this page.

const KEY = "llmctl.key"; // kept only until the tab is closed
const CONNECTION_LOST = "The answer was cut off: the connection to the server was lost.";

export class ServerError extends Error {
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

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new ServerError(body?.error?.message ?? `The server answered ${response.status}.`, response.status, body?.error?.code);
  }
  return response;
}

/** Return {name, takesImages} of the served model. A server that does not say what it takes decides with each request. */
export async function servedModel() {
  const { data } = await (await request("/v1/models")).json();
  return { name: data[0].id, takesImages: data[0].input_modalities?.includes("image") ?? true };
}

/** Return the server's settings for requests that set none; null if it does not tell them. */
export async function serverDefaults() {
  try {
    return await (await request("/defaults")).json();
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Return the number of tokens of a conversation. */
export async function countTokens(messages) {
  const response = await request("/tokenize", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages }),
  });
  return (await response.json()).count;
}

/**
 * Yield the pieces of one answer: {text, reasoning, finish, seed, logprobs, usage, at}. `at`: the milliseconds at which it arrived.
 * @param {object} body The body of a request to /v1/chat/completions, without stream options.
 * @param {AbortSignal} signal Aborts the answer.
 */
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError(CONNECTION_LOST, 0);
    });
    const at = performance.now(); // the same for all pieces that arrived together
    buffered += value ?? "";
    const events = buffered.split("\n\n");
    buffered = done ? "" : events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, 500);
      const choice = chunk.choices?.[0];
      yield {
        text: choice?.delta?.content ?? "",
        reasoning: choice?.delta?.reasoning_content ?? "",
        finish: choice?.finish_reason ?? null,
        seed: choice?.seed ?? null,
        logprobs: choice?.logprobs?.content?.map(({ token, logprob, top_logprobs: top }) => ({ token, logprob, top })) ?? [],
        usage: chunk.usage ?? null,
        at,
      };
    }
    if (done) throw new ServerError(CONNECTION_LOST, 0);
  }
}
