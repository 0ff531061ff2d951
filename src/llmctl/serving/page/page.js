// The page: a conversation with the model behind the server that it came from.

import { all, asLines, asMarkdown, begun, keep, remove } from "./conversations.js";
import { plain, render } from "./markdown.js";
import { answer, modelName, useKey } from "./server.js";

const by = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "max_tokens", "seed"];
const ICONS = {
  copy: "M9 9h10v10H9zM5 15V5h10",
  retry: "M5 12a7 7 0 1 1 2 5M5 20v-4h4",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  remove: "M6 7h12M10 7V5h4v2M8 7l1 12h6l1-12",
};

let model = "";
let conversation = all()[0] ?? begun();
let running = null; // {controller} while an answer is on its way
let editing = null; // the number of the message that is written anew

// -- showing

function button(label, icon, act) {
  const element = document.createElement("button");
  element.type = "button";
  element.setAttribute("aria-label", label);
  element.title = label;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(svg.namespaceURI, "path")).setAttribute("d", ICONS[icon]);
  element.append(svg);
  element.addEventListener("click", act);
  return element;
}

function figuresOf(message) {
  const { tokens, rate, first } = message.figures ?? {};
  if (!tokens) return "";
  const parts = [`${tokens} tokens`];
  if (rate) parts.push(`${rate.toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${first.toFixed(2)} s`);
  return parts.join(" · ");
}

function shown(message, number) {
  const article = document.createElement("article");
  article.className = `message ${message.role}`;
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  const isLast = number === conversation.messages.length - 1;
  if (message.role === "user") {
    const text = article.appendChild(document.createElement("div"));
    text.className = "text";
    text.textContent = plain(message.content);
  } else {
    fill(article, message);
  }
  const tools = article.appendChild(document.createElement("div"));
  tools.className = "tools";
  if (running && isLast && message.role === "assistant") return article;
  tools.append(button("Copy", "copy", () => copy(message.content)));
  const lastUser = conversation.messages.findLastIndex((one) => one.role === "user");
  if (number === lastUser) tools.append(button("Edit", "edit", () => edit(number)));
  if (isLast) tools.append(button(message.role === "user" ? "Answer" : "Another answer", "retry", retry));
  if (message.role === "assistant") {
    const figures = tools.appendChild(document.createElement("span"));
    figures.className = "figures";
    figures.textContent = [message.stopped ? "stopped" : message.cut ? "the length ran out" : "", figuresOf(message)].filter(Boolean).join(" · ");
  }
  return article;
}

function fill(article, message) {
  let details = article.querySelector(".reasoning");
  if (message.reasoning && !details) {
    details = document.createElement("details");
    details.className = "reasoning";
    details.appendChild(document.createElement("summary")).textContent = "Reasoning";
    details.append(document.createElement("div"));
    article.prepend(details);
  }
  if (details) details.lastElementChild.textContent = plain(message.reasoning);
  let prose = article.querySelector(".prose");
  if (!prose) {
    prose = document.createElement("div");
    prose.className = "prose";
    article.insertBefore(prose, article.querySelector(".tools"));
  }
  prose.classList.toggle("pending", !message.content && running !== null);
  prose.replaceChildren(render(message.content));
}

function showAll() {
  by("log").replaceChildren(...conversation.messages.map(shown));
  by("empty").hidden = conversation.messages.length > 0;
  document.title = conversation.title ? `${conversation.title} · llmctl` : "llmctl";
  const last = conversation.messages.findLast((one) => one.figures);
  by("speed").textContent = last?.figures.rate ? `${last.figures.rate.toFixed(1)} tokens/s` : "";
  by("export").disabled = !conversation.messages.length;
  showList();
}

function showList() {
  by("conversations").replaceChildren(...all().map((one) => {
    const entry = document.createElement("li");
    entry.classList.toggle("current", one.id === conversation.id);
    const open = entry.appendChild(document.createElement("button"));
    open.className = "open";
    open.type = "button";
    open.textContent = plain(one.title) || "Untitled";
    if (one.id === conversation.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => change(one));
    const away = entry.appendChild(button(`Delete: ${plain(one.title) || "Untitled"}`, "remove", () => {
      remove(one.id);
      if (one.id === conversation.id) change(all()[0] ?? begun());
      else showList();
    }));
    away.classList.add("icon", "remove");
    return entry;
  }));
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
  by("stop").hidden = running === null;
  by("send").hidden = running !== null;
  by("send").disabled = !by("prompt").value.trim();
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
  hideDrawer();
  by("prompt").focus();
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
    const value = by(name).value.trim();
    if (value !== "" && Number.isFinite(Number(value))) body[name] = Number(value);
  }
  return body;
}

async function reply() {
  const mine = conversation;
  const message = { role: "assistant", content: "", reasoning: "" };
  const body = asked(mine.messages);
  mine.messages.push(message);
  const controller = new AbortController();
  running = { controller };
  by("problem").textContent = "";
  save(mine);
  showAll();
  showRunning();
  scrollDown(true);
  tell("Answering");
  const started = performance.now();
  let first = 0;
  let usage = null;
  let due = false;
  const article = by("log").lastElementChild;
  const draw = () => {
    due = false;
    if (conversation !== mine || !article.isConnected) return;
    fill(article, message);
    scrollDown(false);
  };
  try {
    for await (const piece of answer(body, controller.signal)) {
      if (!first && (piece.text || piece.reasoning)) first = performance.now();
      message.content += piece.text;
      message.reasoning += piece.reasoning;
      message.cut = message.cut || piece.finish === "length";
      usage = piece.usage ?? usage;
      if (!due) {
        due = true;
        requestAnimationFrame(draw);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      if (error.status === 401) askForKey();
      complain(error);
      if (!message.content) mine.messages.pop();
      else message.stopped = true;
    }
  }
  if (message.stopped && !message.content && !message.reasoning) mine.messages.pop();
  if (usage) {
    const seconds = (performance.now() - first) / 1000;
    const tokens = usage.completion_tokens;
    message.figures = { tokens, first: (first - started) / 1000, rate: tokens > 1 ? (tokens - 1) / seconds : 0 };
  }
  if (running?.controller === controller) running = null;
  if (all().some((one) => one.id === mine.id)) save(mine);
  if (conversation === mine) {
    showAll();
    scrollDown(false);
  }
  showRunning();
  tell(message.stopped ? "Stopped" : by("problem").textContent ? "" : `Answered: ${plain(message.content).slice(0, 2000)}`);
}

function save(one) {
  if (!keep(one)) complain(new Error("This browser has no room left: the conversation will be gone when the page is closed."));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied");
  } catch {
    complain(new Error("The browser does not let this page copy."));
  }
}

function download(text, type, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${(conversation.title || "conversation").replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 40) || "conversation"}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function connect() {
  try {
    model = await modelName();
    by("model").textContent = model;
    by("problem").textContent = "";
  } catch (error) {
    if (error.status === 401) askForKey();
    else complain(error);
  }
}

function askForKey() {
  if (!by("key").open) by("key").showModal();
}

// -- listening

function fit() {
  const field = by("prompt");
  field.rows = 1;
  const line = parseFloat(getComputedStyle(field).lineHeight);
  field.rows = Math.max(1, Math.min(12, Math.round((field.scrollHeight - 12) / line)));
}

function hideDrawer() {
  const wasShown = by("drawer").classList.contains("shown");
  by("drawer").classList.remove("shown");
  by("shade").hidden = true;
  by("drawer-open").setAttribute("aria-expanded", "false");
  return wasShown;
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
  if (hideDrawer()) by("drawer-open").focus();
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
by("drawer-open").addEventListener("click", () => {
  by("drawer").classList.add("shown");
  by("shade").hidden = false;
  by("drawer-open").setAttribute("aria-expanded", "true");
  by("drawer-close").focus();
});
by("drawer-close").addEventListener("click", () => {
  hideDrawer();
  by("drawer-open").focus();
});
by("shade").addEventListener("click", hideDrawer);
by("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("llmctl.theme", document.documentElement.dataset.theme);
});
by("settings-open").addEventListener("click", () => by("settings").showModal());
by("settings").addEventListener("close", () => {
  conversation.system = by("system").value.trim();
  if (conversation.messages.length) save(conversation);
  localStorage.setItem("llmctl.settings", JSON.stringify(Object.fromEntries(SETTINGS.map((name) => [name, by(name).value]))));
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
  useKey(by("key-value").value.trim());
  by("key-value").value = "";
  connect();
});
by("log").addEventListener("click", (event) => {
  const asking = event.target.closest("[data-copy]");
  if (asking) copy(asking.closest(".code").querySelector("code").textContent);
});

const theme = localStorage.getItem("llmctl.theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
try {
  const kept = JSON.parse(localStorage.getItem("llmctl.settings") ?? "{}");
  SETTINGS.forEach((name) => { by(name).value = kept[name] ?? ""; });
} catch { /* they stay empty */ }
if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) by("place").textContent = location.hostname;
by("system").value = conversation.system;
showAll();
scrollDown(true);
fit();
showRunning();
by("prompt").focus();
connect();
