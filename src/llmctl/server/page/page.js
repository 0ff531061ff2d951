// The page: a conversation with the model behind the server that it came from.

import { all, asLines, asMarkdown, begun, keep, recall, remember, remove } from "./conversations.js";
import { plain } from "./markdown.js";
import { button, fill, redraw, shown } from "./messages.js";
import { answer, modelName, useKey } from "./server.js";

const by = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "max_tokens", "seed"];

let model = "";
let conversation = all()[0] ?? begun();
let running = null; // {controller, conversation, message} while an answer is on its way
let editing = null; // the number of the message that is written anew

// -- showing

function actsOn(message, number) {
  const isLast = number === conversation.messages.length - 1;
  if (running && isLast && message.role === "assistant") return [];
  const acts = [["Copy", "copy", () => copy(message.content)]];
  const lastUser = conversation.messages.findLastIndex((one) => one.role === "user");
  if (number === lastUser) acts.push(["Edit", "edit", () => edit(number)]);
  if (isLast) acts.push([message.role === "user" ? "Answer" : "Another answer", "retry", retry]);
  return acts;
}

function showAll() {
  redraw(by("log"), conversation.messages.map((one, number) => shown(one, actsOn(one, number))), restingPlace());
  by("empty").hidden = conversation.messages.length > 0;
  document.title = conversation.title ? `${conversation.title} · llmctl` : "llmctl";
  const last = conversation.messages.findLast((one) => one.figures);
  by("speed").textContent = last?.figures.rate ? `${last.figures.rate.toFixed(1)} tokens/s` : "";
  by("export").disabled = !conversation.messages.length;
  showList();
}

function showList() {
  const entries = all().map((one) => {
    const title = plain(one.title) || "Untitled";
    const entry = document.createElement("li");
    entry.classList.toggle("current", one.id === conversation.id);
    const open = entry.appendChild(document.createElement("button"));
    open.className = "open";
    open.type = "button";
    open.textContent = title;
    if (one.id === conversation.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => change(all().find(({ id }) => id === one.id) ?? one));
    const away = entry.appendChild(button(`Delete: ${title}`, "remove", () => askToDelete(one)));
    away.classList.add("icon", "remove");
    return entry;
  });
  redraw(by("conversations"), entries, by("new"));
}

function askToDelete(one) {
  by("deleting-name").textContent = plain(one.title) || "Untitled";
  by("deleting").returnValue = "";
  by("deleting").showModal();
  by("deleting").onclose = () => {
    if (by("deleting").returnValue !== "delete") return;
    remove(one.id);
    if (one.id === conversation.id) change(all()[0] ?? begun());
    else showList();
    tell("Deleted");
  };
}

// Where the focus goes when what had it is gone: not into the field where that would bring up a keyboard on the screen.
function restingPlace() {
  return by(matchMedia("(hover: none)").matches ? "main" : "prompt");
}

function scrollDown(always) {
  const view = by("main");
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 120) view.scrollTop = view.scrollHeight;
}

function tell(text) {
  by("status").textContent = text;
}

function complain(error) {
  by("problem").textContent = plain(error.message);
}

function showRunning() {
  const hadFocus = [by("stop"), by("send")].includes(document.activeElement);
  by("stop").hidden = running === null;
  by("send").hidden = running !== null;
  by("send").disabled = !by("prompt").value.trim();
  if (hadFocus) restingPlace().focus();
}

// -- doing

function change(to) {
  running?.controller.abort();
  conversation = to;
  editing = null;
  by("problem").textContent = "";
  by("system").value = conversation.system;
  showAll();
  scrollDown(true);
  if (drawerIsShown()) showDrawer(false);
  restingPlace().focus();
}

function send() {
  const content = by("prompt").value.trim();
  if (!content || running) return;
  if (editing !== null) conversation.messages.splice(editing);
  editing = null;
  conversation.messages.push({ role: "user", content });
  by("prompt").value = "";
  fit();
  reply();
}

function retry() {
  if (running) return;
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  if (conversation.messages.length) reply();
}

function edit(number) {
  editing = number;
  by("prompt").value = conversation.messages[number].content;
  fit();
  showRunning();
  by("prompt").focus();
  tell("The message is in the field; sending it replaces it and what came after.");
}

function asked(messages) {
  const body = { model, messages: messages.map(({ role, content }) => ({ role, content })) };
  if (conversation.system) body.messages.unshift({ role: "system", content: conversation.system });
  for (const name of SETTINGS) {
    const field = by(name);
    if (field.value.trim() !== "" && field.checkValidity()) body[name] = field.valueAsNumber;
  }
  return body;
}

async function reply() {
  const mine = conversation;
  const message = { role: "assistant", content: "", reasoning: "" };
  const body = asked(mine.messages);
  save(mine);
  mine.messages.push(message);
  const controller = new AbortController();
  running = { controller, conversation: mine, message };
  by("problem").textContent = "";
  showAll();
  showRunning();
  scrollDown(true);
  tell("Answering");
  try {
    if (!model) await learnModel();
    await receive({ ...body, model }, controller.signal, message, by("log").lastElementChild);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      message.stopped = Boolean(message.content || message.reasoning);
      if (error.status === 401) askForKey(error);
      complain(error);
    }
  }
  if (isNothing(message)) mine.messages.pop();
  if (running?.controller === controller) running = null;
  if (all().some((one) => one.id === mine.id)) save(mine);
  if (conversation === mine) {
    showAll();
    scrollDown(false);
  } else showList();
  showRunning();
  tell(message.stopped ? "Stopped" : by("problem").textContent ? "" : `Answered: ${plain(message.content).slice(0, 2000)}`);
}

function isNothing(message) {
  return !message.content && !message.reasoning && !message.figures;
}

/** Take an answer into its message, and show it in its article as often as the screen is drawn. */
async function receive(body, signal, message, article) {
  const started = performance.now();
  let first = 0;
  let isDue = false;
  const draw = () => {
    isDue = false;
    if (!article.isConnected) return;
    fill(article, message, { pending: running?.message === message });
    scrollDown(false);
  };
  for await (const piece of answer(body, signal)) {
    if (!first && (piece.text || piece.reasoning)) first = performance.now();
    message.content += piece.text;
    message.reasoning += piece.reasoning;
    message.cut = message.cut || piece.finish === "length";
    if (piece.usage) {
      const tokens = piece.usage.completion_tokens;
      const seconds = (performance.now() - first) / 1000;
      message.figures = { tokens, ...(first && tokens > 1 ? { rate: (tokens - 1) / seconds } : {}) };
      if (first) message.figures.first = (first - started) / 1000;
    }
    if (!isDue) {
      isDue = true;
      requestAnimationFrame(draw);
    }
  }
}

function save(one) {
  if (!keep(one)) complain(new Error("This browser has no room left: the conversation will be gone when the page is closed."));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a browser gives no clipboard to a page that came over plain HTTP from another machine
    if (!copyFromField(text)) return complain(new Error("The browser does not let this page copy."));
  }
  tell("Copied");
}

function copyFromField(text) {
  const focused = document.activeElement;
  const field = document.body.appendChild(document.createElement("textarea"));
  field.className = "hidden";
  field.value = text;
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return isCopied;
}

function download(text, type, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${(conversation.title || "conversation").replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 40) || "conversation"}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function learnModel() {
  model = await modelName();
  by("model").textContent = plain(model);
}

async function connect() {
  try {
    await learnModel();
    by("problem").textContent = "";
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else complain(error);
  }
}

function askForKey(error) {
  by("key-problem").textContent = error.code === "invalid_api_key" ? "The server does not know this key." : "";
  by("key").returnValue = "";
  if (!by("key").open) by("key").showModal();
}

// -- listening

function fit() {
  const field = by("prompt");
  field.rows = 1;
  const line = parseFloat(getComputedStyle(field).lineHeight);
  field.rows = Math.max(1, Math.min(12, Math.round((field.scrollHeight - 12) / line)));
}

function showDrawer(isShown) {
  by("drawer").classList.toggle("shown", isShown);
  by("shade").hidden = !isShown;
  by("app").inert = isShown; // what lies under the drawer cannot be reached while it is open
  by("drawer-open").setAttribute("aria-expanded", String(isShown));
  by(isShown ? "drawer-close" : "drawer-open").focus();
}

function drawerIsShown() {
  return by("drawer").classList.contains("shown");
}

by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
by("prompt").addEventListener("input", () => {
  fit();
  showRunning();
});
by("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (drawerIsShown()) showDrawer(false);
  else if (running) running.controller.abort();
  else if (editing !== null) {
    editing = null;
    by("prompt").value = "";
    fit();
    showRunning();
  }
});
by("stop").addEventListener("click", () => {
  running?.controller.abort();
  by("prompt").focus();
});
by("new").addEventListener("click", () => change(begun()));
by("drawer-open").addEventListener("click", () => showDrawer(true));
by("drawer-close").addEventListener("click", () => showDrawer(false));
by("shade").addEventListener("click", () => showDrawer(false));
by("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  remember("theme", document.documentElement.dataset.theme);
});
by("settings-open").addEventListener("click", () => by("settings").showModal());
by("settings").addEventListener("close", () => {
  conversation.system = by("system").value.trim();
  if (conversation.messages.length) save(conversation);
  remember("settings", Object.fromEntries(SETTINGS.map((name) => [name, by(name).value])));
});
by("export").addEventListener("click", () => {
  by("exporting").returnValue = "";
  by("exporting").showModal();
});
by("exporting").addEventListener("close", () => {
  const kind = by("exporting").returnValue;
  if (kind === "jsonl") download(asLines(conversation, model), "application/jsonl", "jsonl");
  if (kind === "md") download(asMarkdown(conversation, model), "text/markdown", "md");
});
by("key").addEventListener("close", () => {
  const key = by("key-value").value.trim();
  by("key-value").value = "";
  if (by("key").returnValue === "use" && key) {
    useKey(key);
    connect();
  } else complain(new Error("This server answers only with an API key. It is asked for again when you send a message."));
});
by("log").addEventListener("click", (event) => {
  const asking = event.target.closest("[data-copy]");
  if (asking) copy(asking.closest(".code").querySelector("code").textContent);
});

window.addEventListener("pagehide", () => { // what has come of an answer outlives the page
  if (!running || isNothing(running.message)) return;
  const { conversation: one, message } = running;
  keep({ ...one, messages: [...one.messages.slice(0, -1), { ...message, stopped: true }] });
});
window.addEventListener("storage", showList); // another tab has changed it

const theme = recall("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
const settings = recall("settings");
SETTINGS.forEach((name) => { by(name).value = settings?.[name] ?? ""; });
if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) by("place").textContent = location.hostname;
by("system").value = conversation.system;
showAll();
scrollDown(true);
fit();
showRunning();
by("prompt").focus();
connect();
