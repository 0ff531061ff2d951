// Elements for messages, with statistics and buttons.

import { attachmentElements } from "./attachments.js";
import { detailsElement } from "./details.js";
import { button, element } from "./elements.js";
import { plain, render } from "./markdown.js";

const openReasoning = new WeakSet(); // messages whose reasoning is expanded
const openDetails = new WeakSet(); // messages whose details are shown

/**
 * Return the element of a message.
 * @param {object} message The message.
 * @param {Array} actions Its buttons as [label, icon, action]. No buttons: it is still arriving.
 * @param {object} options `version`: {number, count, go(step)} of an answer; `useSeed`: called with a seed to repeat.
 */
export function messageElement(message, actions, { version = null, useSeed = null } = {}) {
  const isUser = message.role === "user";
  const article = element("article", { className: `message ${message.role}`, attributes: { "aria-label": isUser ? "You" : "Model" } });
  if (isUser) {
    if (message.content) article.append(element("div", { className: "text", text: plain(message.content) }));
    article.append(...attachmentElements(message.attachments ?? []));
  } else {
    updateAnswer(article, message, { pending: !actions.length });
  }
  const tools = article.appendChild(element("div", { className: "tools" }));
  if (!actions.length) return article;
  if (version?.count > 1) tools.append(...versionElements(version));
  tools.append(...actions.map(([label, icon, action]) => button(label, icon, action)));
  if (isUser) return article;
  tools.append(detailsButton(article, message, useSeed), element("span", { className: "figures", text: statisticsText(message) }));
  return article;
}

/** Return the buttons that show another version. At an end they stay focusable, so that the focus is not lost. */
function versionElements({ number, count, go }) {
  const one = (label, icon, step, isEnd) => {
    const made = button(label, icon, () => { if (!isEnd) go(step); });
    if (isEnd) made.setAttribute("aria-disabled", "true");
    return made;
  };
  return [
    one("Previous version", "previous", -1, number === 1),
    element("span", { className: "version", text: `${number} of ${count}` }),
    one("Next version", "next", 1, number === count),
  ];
}

function detailsButton(article, message, useSeed) {
  const show = () => {
    const isShown = openDetails.has(message);
    made.setAttribute("aria-expanded", String(isShown));
    article.querySelector(".details")?.remove();
    if (isShown) article.append(detailsElement(message, useSeed));
  };
  const made = button("Details", "details", () => {
    if (!openDetails.delete(message)) openDetails.add(message);
    show();
  });
  show();
  return made;
}

/** Show new text of an answer. Unchanged nodes are kept, and with them selection, focus and scroll position. */
export function updateAnswer(article, message, { pending }) {
  if (message.reasoning) reasoningElement(article, message).textContent = plain(message.reasoning);
  let prose = article.querySelector(".prose");
  if (!prose) {
    prose = document.createElement("div");
    prose.className = "prose";
    article.insertBefore(prose, article.querySelector(".tools"));
  }
  prose.classList.toggle("pending", pending && !message.content);
  const fresh = [...render(message.content).childNodes];
  const changed = fresh.findIndex((node, index) => !prose.childNodes[index]?.isEqualNode(node));
  const kept = changed < 0 ? fresh.length : changed;
  while (prose.childNodes.length > kept) prose.lastChild.remove();
  prose.append(...fresh.slice(kept));
}

function reasoningElement(article, message) {
  let details = article.querySelector(".reasoning");
  if (!details) {
    details = document.createElement("details");
    details.className = "reasoning";
    details.open = openReasoning.has(message);
    details.appendChild(document.createElement("summary")).textContent = "Reasoning";
    details.append(document.createElement("div"));
    details.addEventListener("toggle", () => (details.open ? openReasoning.add(message) : openReasoning.delete(message)));
    article.prepend(details);
  }
  return details.lastElementChild;
}

function statisticsText(message) {
  const { tokens, rate } = message.figures ?? {};
  return [
    message.stopped ? "stopped" : message.cut ? "token limit reached" : "",
    tokens ? `${tokens} token${tokens === 1 ? "" : "s"}` : "",
    rate ? `${rate.toFixed(1)} tokens/s` : "",
  ].filter(Boolean).join(" · ");
}
