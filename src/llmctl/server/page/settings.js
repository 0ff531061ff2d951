// Light or dark, and the settings dialog. An empty field means the server's own value, which it shows as a placeholder.

import { byId } from "./browser.js";
import { recall, remember } from "./conversations.js";
import { plain } from "./markdown.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const SYSTEM = byId("system").placeholder;
const TOP_LOGPROBS = 3;

/** Connect the dialog. `closed` is called with its system prompt. */
export function setUpSettings(closed) {
  restore();
  byId("settings-open").addEventListener("click", () => byId("settings").showModal());
  byId("settings-reset").addEventListener("click", () => {
    NUMBERS.forEach((name) => { byId(name).value = ""; });
    byId("logprobs").checked = false;
  });
  byId("settings").addEventListener("close", () => {
    const kept = recall("settings");
    for (const name of NUMBERS) { // closed with Escape: a wrong value does not stay
      if (!byId(name).checkValidity()) byId(name).value = kept?.[name] ?? "";
    }
    keep();
    closed(byId("system").value.trim());
  });
}

function restore() {
  const settings = recall("settings");
  NUMBERS.forEach((name) => { byId(name).value = settings?.[name] ?? ""; });
  byId("logprobs").checked = settings?.logprobs === true;
}

function keep() {
  const numbers = NUMBERS.map((name) => [name, byId(name).value]);
  remember("settings", { ...Object.fromEntries(numbers), logprobs: byId("logprobs").checked });
}

export function useSeed(seed) {
  byId("seed").value = seed;
  keep();
}

/** Return the fields of a request that the user has set. */
export function requestSettings() {
  const set = NUMBERS.filter((name) => byId(name).value.trim() !== "" && byId(name).checkValidity());
  const numbers = Object.fromEntries(set.map((name) => [name, byId(name).valueAsNumber]));
  return byId("logprobs").checked ? { ...numbers, logprobs: true, top_logprobs: TOP_LOGPROBS } : numbers;
}

/** Show the server's values in empty fields. */
export function showDefaults(defaults) {
  for (const name of NUMBERS) {
    const value = defaults?.[name];
    byId(name).placeholder = typeof value === "number" ? String(value) : name === "seed" && defaults?.temperature ? "a new one" : "";
  }
  byId("system").placeholder = defaults?.system ? plain(defaults.system).slice(0, 2000) : SYSTEM;
  byId("greedy").hidden = defaults?.temperature !== 0;
}

/** Follow the browser's light or dark mode until the button is pressed. */
export function setUpTheme() {
  const theme = recall("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  byId("theme").addEventListener("click", () => {
    const isDark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    remember("theme", document.documentElement.dataset.theme);
  });
}
