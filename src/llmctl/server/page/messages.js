// Elements for messages, with statistics and buttons.

import { plain, render } from "./markdown.js";

const ICONS = {
  copy: "M9 9h10v10H9zM5 15V5h10",
  retry: "M5 12a7 7 0 1 1 2 5M5 20v-4h4",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  remove: "M6 7h12M10 7V5h4v2M8 7l1 12h6l1-12",
};
const openReasoning = new WeakSet(); // messages whose reasoning is expanded

/** Return an icon button with an accessible name. */
export function button(label, icon, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.setAttribute("aria-label", label);
  element.title = label;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(svg.namespaceURI, "path")).setAttribute("d", ICONS[icon]);
  element.append(svg);
  element.addEventListener("click", action);
  return element;
}

/** Return the element of a message with a row of [label, icon, action] buttons. No buttons: it is still arriving. */
export function messageElement(message, actions) {
  const article = document.createElement("article");
  article.className = `message ${message.role}`;
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  if (message.role === "user") {
    const text = article.appendChild(document.createElement("div"));
    text.className = "text";
    text.textContent = plain(message.content);
  } else {
    updateAnswer(article, message, { pending: !actions.length });
  }
  const tools = article.appendChild(document.createElement("div"));
  tools.className = "tools";
  tools.append(...actions.map(([label, icon, action]) => button(label, icon, action)));
  if (actions.length && message.role === "assistant") {
    const figures = tools.appendChild(document.createElement("span"));
    figures.className = "figures";
    figures.textContent = statisticsText(message);
  }
  return article;
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

/** Replace all children. The focus stays on the element with the same name in the same row, or goes to `fallback`. */
export function replaceChildren(parent, elements, fallback) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const row = [...parent.children].findIndex((child) => child.contains(focused));
  parent.replaceChildren(...elements);
  if (!focused) return;
  const candidates = [...(parent.children[row]?.querySelectorAll("button, summary, a") ?? [])];
  (candidates.find((candidate) => accessibleName(candidate) === accessibleName(focused)) ?? fallback).focus();
}

function accessibleName(element) {
  return element.getAttribute("aria-label") ?? element.textContent;
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
  const { tokens, rate, first, seed } = message.figures ?? {};
  return [
    message.stopped ? "stopped" : message.cut ? "token limit reached" : "",
    tokens ? `${tokens} token${tokens === 1 ? "" : "s"}` : "",
    rate ? `${rate.toFixed(1)} tokens/s` : "",
    first ? `first after ${first.toFixed(2)} s` : "",
    seed ? `seed ${seed}` : "", // without sampling it is 0
  ].filter(Boolean).join(" · ");
}
