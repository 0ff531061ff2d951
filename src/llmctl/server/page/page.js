// The page: a conversation with the model of this server.

import { messageContent, messageText, setUpAttachments } from "./attachments.js";
import { announce, byId, copyText, download } from "./browser.js";
import { allConversations, newConversation, saveConversation } from "./conversations.js";
import { ask } from "./dialogs.js";
import { drawerIsShown, setUpDrawer, showDrawer, showList } from "./drawer.js";
import { replaceChildren } from "./elements.js";
import { NOT_KEPT } from "./images.js";
import { plain } from "./markdown.js";
import { messageElement, updateAnswer } from "./messages.js";
import { showContext } from "./meter.js";
import { receive } from "./receive.js";
import { countTokens, serverDefaults, servedModel, useKey } from "./server.js";
import { requestSettings, setUpSettings, setUpTheme, showDefaults, useSeed } from "./settings.js";
import { readConversation, toJsonLines, toMarkdown } from "./transcript.js";
import { newVersion, position, switched, withoutShown } from "./versions.js";

let model = "";
let contextLength = null;
let conversation = allConversations()[0] ?? newConversation();
let running = null; // {controller, conversation, message} while an answer arrives
let editing = null; // the index of the message that is being edited

// -- display

function actionsOf(message, index) {
  const isLast = index === conversation.messages.length - 1;
  if (running && isLast && message.role === "assistant") return [];
  const actions = [["Copy", "copy", () => copy(message.content || messageText(message))]];
  const lastUser = conversation.messages.findLastIndex((one) => one.role === "user");
  if (index === lastUser) actions.push(["Edit", "edit", () => edit(index)]);
  if (isLast && canContinue(message)) actions.push(["Continue", "resume", continueAnswer]);
  if (isLast) actions.push([message.role === "user" ? "Answer" : "Another answer", "retry", retry]);
  return actions;
}

/** Return true for an answer that ended early. The server can continue text, but not reasoning without text. */
function canContinue(message) {
  return message.role === "assistant" && Boolean(message.cut || message.stopped) && message.content.trim() !== "";
}

function elementOf(message, index) {
  const options = { version: { ...position(message), go: (step) => showVersion(index, step) }, useSeed: repeatSeed };
  return messageElement(message, actionsOf(message, index), options);
}

function showAll() {
  replaceChildren(byId("log"), conversation.messages.map(elementOf), fallbackFocus());
  byId("empty").hidden = conversation.messages.length > 0;
  const last = conversation.messages.findLast((one) => one.figures);
  byId("speed").textContent = last?.figures.rate ? `${last.figures.rate.toFixed(1)} tokens/s` : "";
  byId("export").disabled = !conversation.messages.length;
  showTitle();
  showList();
}

function showTitle() {
  document.title = conversation.title ? `${plain(conversation.title)} · llmctl` : "llmctl";
}

// Return the element to focus if the focused one has been removed: not the prompt if that would open an on-screen keyboard.
function fallbackFocus() {
  return byId(matchMedia("(hover: none)").matches ? "main" : "prompt");
}

function scrollDown(always) {
  const view = byId("main");
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 120) view.scrollTop = view.scrollHeight;
}

function showError(error) {
  byId("problem").textContent = plain(error.message);
  scrollDown(false); // the error takes room from the conversation
}

function showRunning() {
  const hadFocus = [byId("stop"), byId("send")].includes(document.activeElement);
  byId("stop").hidden = running === null;
  byId("send").hidden = running !== null;
  byId("send").disabled = !byId("prompt").value.trim() && !attachments.files.length;
  if (hadFocus) fallbackFocus().focus();
}

/** Show how full the context is: as the last answer reported, or else as the server counts. */
async function updateContext() {
  const { messages } = conversation;
  const shown = conversation;
  const draft = attachments.files;
  const last = messages.at(-1);
  if (running || !contextLength) return;
  if (!messages.length && !draft.length) showContext(0, contextLength);
  else if (!draft.length && last.figures?.context && !last.stopped) showContext(last.figures.context, contextLength);
  else {
    const asked = draft.length ? [...messages, { role: "user", content: byId("prompt").value, attachments: draft }] : messages;
    try {
      const tokens = await countTokens(requestMessages(asked));
      if (conversation === shown && conversation.messages === messages && attachments.files === draft && !running) showContext(tokens, contextLength);
    } catch (error) {
      showContext(0, contextLength);
      if (draft.length && error.status === 400) showError(error); // it is too long
    }
  }
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
  updateContext();
}

function send() {
  const content = byId("prompt").value.trim();
  const files = attachments.files;
  if (running || (!content && !files.length)) return;
  if (editing !== null) conversation.messages.splice(editing);
  editing = null;
  conversation.messages.push({ role: "user", content, ...(files.length ? { attachments: files } : {}) });
  fillPrompt("", []);
  reply(newAnswer());
}

function newAnswer() {
  return { role: "assistant", content: "", reasoning: "" };
}

function retry() {
  if (running || !conversation.messages.length) return;
  const last = conversation.messages.at(-1);
  if (last.role !== "assistant") reply(newAnswer());
  else {
    conversation.messages.pop();
    reply(newVersion(last));
  }
}

function continueAnswer() {
  if (running) return;
  reply(conversation.messages.pop(), { isContinued: true });
}

function showVersion(index, step) {
  if (running) return;
  conversation.messages = switched(conversation.messages, index, step);
  editing = null;
  save(conversation);
  showAll();
  updateContext();
  const { number, count } = position(conversation.messages[index]);
  announce(`Version ${number} of ${count}: ${plain(conversation.messages[index].content).slice(0, 2000)}`);
}

function repeatSeed(seed) {
  useSeed(seed);
  announce(`The seed ${seed} is set for the next answers`);
}

function edit(index) {
  editing = index;
  const { content, attachments: files = [] } = conversation.messages[index];
  fillPrompt(content, files);
  byId("prompt").focus();
  announce("The message is in the input field. Sending it replaces the message and everything after it.");
}

function fillPrompt(text, files) {
  byId("prompt").value = text;
  attachments.set(files);
  fitPrompt();
  showRunning();
}

/** Return messages in the form of a request. An answer that is to be continued keeps its reasoning. */
function requestMessages(messages) {
  const last = messages.at(-1);
  const sent = messages.map((message) => ({
    role: message.role,
    content: messageContent(message),
    ...(message === last && message.role === "assistant" && message.reasoning ? { reasoning_content: message.reasoning } : {}),
  }));
  return conversation.system ? [{ role: "system", content: conversation.system }, ...sent] : sent;
}

/** Request an answer and add it to the conversation. `isContinued`: the message has its beginning. */
async function reply(message, { isContinued = false } = {}) {
  const mine = conversation;
  const before = { ...message };
  const messages = requestMessages(isContinued ? [...mine.messages, message] : mine.messages);
  const body = { messages, ...requestSettings() };
  byId("problem").textContent = "";
  if (isContinued) Object.assign(message, { stopped: false, cut: false });
  else if (!message.before) save(mine); // an answer with earlier versions is stored already
  mine.messages.push(message);
  const controller = new AbortController();
  running = { controller, conversation: mine, message };
  showAll();
  showRunning();
  scrollDown(true);
  announce("Answering");
  try {
    if (!model) await fetchModel();
    const article = byId("log").lastElementChild;
    await receive({ model, ...body }, controller.signal, message, () => drawAnswer(article, message));
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else {
      message.stopped = !isEmpty(message);
      if (error.status === 401) askForKey(error);
      showError(error);
    }
    if (isContinued && message.content === before.content) Object.assign(message, { stopped: false, cut: false, figures: null, seeds: [] }, before);
  }
  finish(mine, message, controller);
}

function drawAnswer(article, message) {
  if (!article.isConnected) return;
  updateAnswer(article, message, { pending: running?.message === message });
  scrollDown(false);
}

/** Keep an answer that has ended. Of an empty one, nothing is kept but its earlier versions. */
function finish(mine, message, controller) {
  if (isEmpty(message)) mine.messages.splice(-1, 1, ...[withoutShown(message)].filter(Boolean));
  if (running?.controller === controller) running = null;
  if (allConversations().some((one) => one.id === mine.id)) save(mine);
  if (conversation === mine) {
    showAll();
    scrollDown(false);
  } else showList();
  showRunning();
  updateContext();
  announce(message.stopped ? "Stopped" : byId("problem").textContent ? "" : `Answered: ${plain(message.content).slice(0, 2000)}`);
}

function isEmpty(message) {
  return !message.content && !message.reasoning && !message.figures;
}

function save(one) {
  if (!saveConversation(one, () => showError(new Error(NOT_KEPT)))) showError(new Error("This browser has no storage left. The conversation will be lost when the page is closed."));
}

async function copy(text) {
  if (await copyText(text)) announce("Copied");
  else showError(new Error("The browser does not allow this page to copy."));
}

async function exportConversation() {
  const format = await ask("exporting");
  const title = conversation.title;
  if (format === "jsonl") download(toJsonLines(conversation, model), { type: "application/jsonl", title, extension: "jsonl" });
  if (format === "md") download(toMarkdown(conversation, model), { type: "text/markdown", title, extension: "md" });
}

async function importConversation(file) {
  try {
    const imported = await readConversation(file);
    openConversation(imported);
    save(imported);
    showAll();
    announce(`Imported: ${imported.messages.length} messages`);
  } catch (error) {
    if (drawerIsShown()) showDrawer(false); // the error is under it
    showError(error);
  }
}

async function fetchModel() {
  const { name, takesImages } = await servedModel();
  model = name;
  attachments.allowImages(takesImages);
  byId("model").textContent = plain(model);
  const defaults = await serverDefaults();
  contextLength = defaults?.max_model_len ?? null;
  showDefaults(defaults);
}

async function connect() {
  try {
    await fetchModel();
    byId("problem").textContent = "";
    updateContext();
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
    fillPrompt("", []);
  }
});
byId("stop").addEventListener("click", () => {
  running?.controller.abort();
  byId("prompt").focus();
});
byId("new").addEventListener("click", () => openConversation(newConversation()));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.value = ""; // so that the same file can be chosen again
  if (file) importConversation(file);
});
byId("export").addEventListener("click", exportConversation);
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

setUpTheme();
setUpSettings((system) => {
  conversation.system = system;
  if (conversation.messages.length) save(conversation);
});
setUpDrawer({
  current: () => conversation.id,
  open: openConversation,
  deleted: (id) => { if (id === conversation.id) openConversation(allConversations()[0] ?? newConversation()); },
  renamed: (id, title) => {
    if (id !== conversation.id) return;
    Object.assign(conversation, { title, isNamed: true });
    showTitle();
  },
});
const attachments = setUpAttachments({
  changed: () => {
    scrollDown(false); // the list of files takes room from the conversation
    showRunning();
    queueMicrotask(updateContext); // not while a message is being sent
  },
  failed: showError,
});
if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) byId("place").textContent = location.hostname;
byId("system").value = conversation.system;
showAll();
scrollDown(true);
fitPrompt();
showRunning();
byId("prompt").focus();
connect();
