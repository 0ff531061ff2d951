// The page: a conversation with the model of this server.

import { allConversations, deleteConversation, newConversation, recall, remember, saveConversation, toJsonLines, toMarkdown } from "./conversations.js";
import { plain } from "./markdown.js";
import { button, messageElement, replaceChildren, updateAnswer } from "./messages.js";
import { answer, modelName, useKey } from "./server.js";

const byId = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "max_tokens", "seed"];

let model = "";
let conversation = allConversations()[0] ?? newConversation();
let running = null; // {controller, conversation, message} while an answer arrives
let editing = null; // the index of the message that is being edited

// -- display

function actionsOf(message, index) {
  const isLast = index === conversation.messages.length - 1;
  if (running && isLast && message.role === "assistant") return [];
  const actions = [["Copy", "copy", () => copy(message.content)]];
  const lastUser = conversation.messages.findLastIndex((one) => one.role === "user");
  if (index === lastUser) actions.push(["Edit", "edit", () => edit(index)]);
  if (isLast) actions.push([message.role === "user" ? "Answer" : "Another answer", "retry", retry]);
  return actions;
}

function showAll() {
  replaceChildren(byId("log"), conversation.messages.map((message, index) => messageElement(message, actionsOf(message, index))), fallbackFocus());
  byId("empty").hidden = conversation.messages.length > 0;
  document.title = conversation.title ? `${conversation.title} · llmctl` : "llmctl";
  const last = conversation.messages.findLast((one) => one.figures);
  byId("speed").textContent = last?.figures.rate ? `${last.figures.rate.toFixed(1)} tokens/s` : "";
  byId("export").disabled = !conversation.messages.length;
  showList();
}

function showList() {
  const entries = allConversations().map((one) => {
    const title = plain(one.title) || "Untitled";
    const entry = document.createElement("li");
    entry.classList.toggle("current", one.id === conversation.id);
    const open = entry.appendChild(document.createElement("button"));
    open.className = "open";
    open.type = "button";
    open.textContent = title;
    if (one.id === conversation.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => openConversation(allConversations().find(({ id }) => id === one.id) ?? one));
    const deletion = entry.appendChild(button(`Delete: ${title}`, "remove", () => askToDelete(one)));
    deletion.classList.add("icon", "remove");
    return entry;
  });
  replaceChildren(byId("conversations"), entries, byId("new"));
}

function askToDelete(one) {
  byId("deleting-name").textContent = plain(one.title) || "Untitled";
  byId("deleting").returnValue = "";
  byId("deleting").showModal();
  byId("deleting").onclose = () => {
    if (byId("deleting").returnValue !== "delete") return;
    deleteConversation(one.id);
    if (one.id === conversation.id) openConversation(allConversations()[0] ?? newConversation());
    else showList();
    announce("Deleted");
  };
}

// Return the element to focus if the focused one has been removed: not the prompt if that would open an on-screen keyboard.
function fallbackFocus() {
  return byId(matchMedia("(hover: none)").matches ? "main" : "prompt");
}

function scrollDown(always) {
  const view = byId("main");
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 120) view.scrollTop = view.scrollHeight;
}

function announce(text) {
  byId("status").textContent = text;
}

function showError(error) {
  byId("problem").textContent = plain(error.message);
  scrollDown(false); // the error takes room from the conversation
}

function showRunning() {
  const hadFocus = [byId("stop"), byId("send")].includes(document.activeElement);
  byId("stop").hidden = running === null;
  byId("send").hidden = running !== null;
  byId("send").disabled = !byId("prompt").value.trim();
  if (hadFocus) fallbackFocus().focus();
}

// -- actions

function openConversation(to) {
  running?.controller.abort();
  conversation = to;
  editing = null;
  byId("problem").textContent = "";
  byId("system").value = conversation.system;
  showAll();
  scrollDown(true);
  if (drawerIsShown()) showDrawer(false);
  fallbackFocus().focus();
}

function send() {
  const content = byId("prompt").value.trim();
  if (!content || running) return;
  if (editing !== null) conversation.messages.splice(editing);
  editing = null;
  conversation.messages.push({ role: "user", content });
  byId("prompt").value = "";
  fitPrompt();
  reply();
}

function retry() {
  if (running) return;
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  if (conversation.messages.length) reply();
}

function edit(index) {
  editing = index;
  byId("prompt").value = conversation.messages[index].content;
  fitPrompt();
  showRunning();
  byId("prompt").focus();
  announce("The message is in the input field. Sending it replaces the message and everything after it.");
}

function requestBody(messages) {
  const body = { model, messages: messages.map(({ role, content }) => ({ role, content })) };
  if (conversation.system) body.messages.unshift({ role: "system", content: conversation.system });
  for (const name of SETTINGS) {
    const field = byId(name);
    if (field.value.trim() !== "" && field.checkValidity()) body[name] = field.valueAsNumber;
  }
  return body;
}

async function reply() {
  const mine = conversation;
  const message = { role: "assistant", content: "", reasoning: "" };
  const body = requestBody(mine.messages);
  byId("problem").textContent = "";
  save(mine);
  mine.messages.push(message);
  const controller = new AbortController();
  running = { controller, conversation: mine, message };
  showAll();
  showRunning();
  scrollDown(true);
  announce("Answering");
  try {
    if (!model) await fetchModelName();
    await receive({ ...body, model }, controller.signal, message, byId("log").lastElementChild);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      message.stopped = Boolean(message.content || message.reasoning);
      if (error.status === 401) askForKey(error);
      showError(error);
    }
  }
  if (isEmpty(message)) mine.messages.pop();
  if (running?.controller === controller) running = null;
  if (allConversations().some((one) => one.id === mine.id)) save(mine);
  if (conversation === mine) {
    showAll();
    scrollDown(false);
  } else showList();
  showRunning();
  announce(message.stopped ? "Stopped" : byId("problem").textContent ? "" : `Answered: ${plain(message.content).slice(0, 2000)}`);
}

function isEmpty(message) {
  return !message.content && !message.reasoning && !message.figures;
}

/** Receive an answer into its message; update its element at most once per screen refresh. */
async function receive(body, signal, message, article) {
  const started = performance.now();
  let first = 0;
  let last = 0;
  let seed = null;
  let isScheduled = false;
  const draw = () => {
    isScheduled = false;
    if (!article.isConnected) return;
    updateAnswer(article, message, { pending: running?.message === message });
    scrollDown(false);
  };
  for await (const piece of answer(body, signal)) {
    if (piece.text || piece.reasoning) {
      first ||= piece.at;
      last = piece.at;
    }
    message.content += piece.text;
    message.reasoning += piece.reasoning;
    message.cut = message.cut || piece.finish === "length";
    seed = piece.seed ?? seed;
    if (piece.usage) {
      const tokens = piece.usage.completion_tokens;
      message.figures = { tokens, seed };
      if (first) message.figures.first = (first - started) / 1000;
      if (last > first) message.figures.rate = (tokens - 1) / ((piece.at - first) / 1000); // unknown if all arrived at once
    }
    if (!isScheduled) {
      isScheduled = true;
      requestAnimationFrame(draw);
    }
  }
}

function save(one) {
  if (!saveConversation(one)) showError(new Error("This browser has no storage left. The conversation will be lost when the page is closed."));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // browsers deny clipboard access to pages loaded over plain HTTP from another machine
    if (!copyFromField(text)) return showError(new Error("The browser does not allow this page to copy."));
  }
  announce("Copied");
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

function download(text, type, extension) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${(conversation.title || "conversation").replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 40) || "conversation"}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function fetchModelName() {
  model = await modelName();
  byId("model").textContent = plain(model);
}

async function connect() {
  try {
    await fetchModelName();
    byId("problem").textContent = "";
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else showError(error);
  }
}

function askForKey(error) {
  byId("key-problem").textContent = error.code === "invalid_api_key" ? "The key is not valid." : "";
  byId("key").returnValue = "";
  if (!byId("key").open) byId("key").showModal();
}

// -- events

function fitPrompt() {
  const field = byId("prompt");
  field.rows = 1;
  const line = parseFloat(getComputedStyle(field).lineHeight);
  field.rows = Math.max(1, Math.min(12, Math.round((field.scrollHeight - 12) / line)));
}

function showDrawer(isShown) {
  byId("drawer").classList.toggle("shown", isShown);
  byId("shade").hidden = !isShown;
  byId("app").inert = isShown; // elements under the open drawer cannot be reached
  byId("drawer-open").setAttribute("aria-expanded", String(isShown));
  byId(isShown ? "drawer-close" : "drawer-open").focus();
}

function drawerIsShown() {
  return byId("drawer").classList.contains("shown");
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("input", () => {
  fitPrompt();
  showRunning();
});
byId("prompt").addEventListener("keydown", (event) => {
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
    byId("prompt").value = "";
    fitPrompt();
    showRunning();
  }
});
byId("stop").addEventListener("click", () => {
  running?.controller.abort();
  byId("prompt").focus();
});
byId("new").addEventListener("click", () => openConversation(newConversation()));
byId("drawer-open").addEventListener("click", () => showDrawer(true));
byId("drawer-close").addEventListener("click", () => showDrawer(false));
byId("shade").addEventListener("click", () => showDrawer(false));
byId("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  remember("theme", document.documentElement.dataset.theme);
});
byId("settings-open").addEventListener("click", () => byId("settings").showModal());
byId("settings").addEventListener("close", () => {
  conversation.system = byId("system").value.trim();
  if (conversation.messages.length) save(conversation);
  remember("settings", Object.fromEntries(SETTINGS.map((name) => [name, byId(name).value])));
});
byId("export").addEventListener("click", () => {
  byId("exporting").returnValue = "";
  byId("exporting").showModal();
});
byId("exporting").addEventListener("close", () => {
  const format = byId("exporting").returnValue;
  if (format === "jsonl") download(toJsonLines(conversation, model), "application/jsonl", "jsonl");
  if (format === "md") download(toMarkdown(conversation, model), "text/markdown", "md");
});
byId("key").addEventListener("close", () => {
  const key = byId("key-value").value.trim();
  byId("key-value").value = "";
  if (byId("key").returnValue === "use" && key) {
    useKey(key);
    connect();
  } else showError(new Error("This server requires an API key. You will be asked for it again when you send a message."));
});
byId("log").addEventListener("click", (event) => {
  const copyButton = event.target.closest("[data-copy]");
  if (copyButton) copy(copyButton.closest(".code").querySelector("code").textContent);
});

window.addEventListener("pagehide", () => { // keep a partial answer when the page is closed
  if (!running || isEmpty(running.message)) return;
  const { conversation: one, message } = running;
  saveConversation({ ...one, messages: [...one.messages.slice(0, -1), { ...message, stopped: true }] });
});
window.addEventListener("storage", showList); // changed by another tab

const theme = recall("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
const settings = recall("settings");
SETTINGS.forEach((name) => { byId(name).value = settings?.[name] ?? ""; });
if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) byId("place").textContent = location.hostname;
byId("system").value = conversation.system;
showAll();
scrollDown(true);
fitPrompt();
showRunning();
byId("prompt").focus();
connect();
