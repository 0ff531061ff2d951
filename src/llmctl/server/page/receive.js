// The receipt of an answer: its text as it arrives, its token counts, times, seed and log-probabilities.

import { answer } from "./server.js";

/**
 * Receive an answer into its message.
 * @param {object} body The request.
 * @param {AbortSignal} signal Aborts the answer.
 * @param {object} message The message. If it has text, the answer continues it.
 * @param {Function} draw Shows the message; called at most once per screen refresh.
 */
export async function receive(body, signal, message, draw) {
  const started = performance.now();
  const earlier = message.figures; // of the part that is continued
  const hasBeginning = message.content !== "";
  let first = 0;
  let last = 0;
  let isScheduled = false;
  const seeds = message.seeds ?? [];
  message.figures = null;
  for await (const piece of answer(body, signal)) {
    if (piece.text || piece.reasoning) {
      first ||= piece.at;
      last = piece.at;
    }
    message.content += piece.text;
    message.reasoning += piece.reasoning;
    message.cut = message.cut || piece.finish === "length";
    if (piece.logprobs.length) message.logprobs = [...(message.logprobs ?? []), ...piece.logprobs];
    if (piece.seed !== null) message.seeds = [...seeds, piece.seed];
    if (piece.usage) {
      message.figures = figuresOf(piece.usage, { earlier, hasBeginning });
      if (first) message.figures.first = (first - started) / 1000;
      if (last > first) message.figures.rate = (piece.usage.completion_tokens - 1) / ((piece.at - first) / 1000); // unknown if all arrived at once
    }
    if (!isScheduled) {
      isScheduled = true;
      requestAnimationFrame(() => {
        isScheduled = false;
        draw();
      });
    }
  }
}

/** Return the counts of an answer. Those of a part that was stopped are unknown, and so is the sum. */
function figuresOf({ prompt_tokens: prompt, completion_tokens: generated }, { earlier, hasBeginning }) {
  const tokens = hasBeginning ? (earlier?.tokens ? earlier.tokens + generated : null) : generated;
  return { tokens, prompt, context: prompt + generated };
}
