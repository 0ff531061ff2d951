// The context meter: how much of the model's context the conversation fills.

import { byId } from "./browser.js";

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exact = new Intl.NumberFormat("en");

/** Show the tokens of a conversation. It is hidden while they or the context length are unknown. */
export function showContext(tokens, limit) {
  byId("context").hidden = !tokens || !limit;
  if (!tokens || !limit) return;
  const isFull = tokens >= 0.9 * limit;
  byId("context").classList.toggle("full", isFull);
  byId("context-bar").max = limit;
  byId("context-bar").value = Math.min(tokens, limit);
  byId("context-text").textContent = `${compact.format(tokens)} / ${compact.format(limit)}`;
  const sentence = `The conversation has ${exact.format(tokens)} of ${exact.format(limit)} tokens`;
  byId("context").title = sentence;
  byId("context-bar").setAttribute("aria-label", "Context");
  byId("context-bar").setAttribute("aria-valuetext", sentence);
}
