// The details of an answer: its token counts, times and seed, and the log-probabilities of its tokens.

import { element } from "./elements.js";
import { plain } from "./markdown.js";

const MAX_ROWS = 2000;
const number = new Intl.NumberFormat("en");

/** Return the details of an answer. `useSeed` is called with the seed that its button names. */
export function detailsElement(message, useSeed) {
  const { seeds = [], figures } = message;
  const { tokens, prompt, rate, first } = figures ?? {};
  const box = element("div", { className: "details", attributes: { role: "group", "aria-label": "Details of the answer" } });
  if (!figures && !seeds.length) {
    box.append(element("p", { text: "Nothing is known about how this answer was generated." }));
    return box;
  }
  const list = element("dl");
  const add = (name, ...values) => list.append(element("div", {}, element("dt", { text: name }), element("dd", {}, ...values)));
  if (prompt) add("Tokens read", number.format(prompt));
  if (tokens) add("Tokens generated", number.format(tokens));
  if (first) add("First token after", `${first.toFixed(2)} s`);
  if (rate) add("Speed", `${rate.toFixed(1)} tokens/s`);
  add("End", message.stopped ? "stopped" : message.cut ? "token limit" : "the model ended it");
  add(seeds.length > 1 ? "Seeds, one for each part" : "Seed", ...seedValues(seeds, useSeed));
  box.append(list);
  if (message.logprobs?.length) box.append(...logprobElements(message.logprobs));
  return box;
}

function seedValues(seeds, useSeed) {
  if (!seeds.length) return ["not reported"];
  if (!seeds.some(Boolean)) return ["none: greedy decoding"];
  const use = element("button", { text: "Use this seed", attributes: { type: "button" } });
  use.addEventListener("click", () => useSeed(seeds[0]));
  return [seeds.join(", "), ...(seeds.length === 1 ? [" ", use] : [])];
}

function logprobElements(logprobs) {
  const cell = (name, text, attributes = {}) => element(name, { text, attributes });
  const head = element("tr", {}, ...["Token", "Probability", "Log-probability", "Most likely"].map((name) => cell("th", name, { scope: "col" })));
  const rows = logprobs.slice(0, MAX_ROWS).map(({ token, logprob, top }) => element(
    "tr",
    { className: logprob < Math.log(0.5) ? "unlikely" : "" },
    element("td", {}, element("code", { text: visible(token) })),
    cell("td", percent(logprob)),
    cell("td", logprob.toFixed(3)),
    cell("td", top.map((one) => `${visible(one.token)} ${percent(one.logprob)}`).join(" · ")),
  ));
  const region = element("div", { className: "logprobs", attributes: { tabindex: "0", role: "group", "aria-label": "Tokens of the answer" } });
  region.append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  return logprobs.length > MAX_ROWS ? [region, element("p", { className: "hint", text: `The first ${number.format(MAX_ROWS)} tokens.` })] : [region];
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)}%`;
}

function visible(token) {
  return plain(token).replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
