// Messages as elements: what was said, what it took, and what can be done with it.

import { plain, render } from "./markdown.js";

const ICONS = {
  copy: "M9 9h10v10H9zM5 15V5h10",
  retry: "M5 12a7 7 0 1 1 2 5M5 20v-4h4",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  remove: "M6 7h12M10 7V5h4v2M8 7l1 12h6l1-12",
};
const opened = new WeakSet(); // messages whose reasoning is being read

/** A button that is an icon, with a name for those who do not see it. */
export function button(label, icon, act) {
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

/** A message, and a row of [label, icon, act] under it; none while it is being written. */
export function shown(message, acts) {
  const article = document.createElement("article");
  article.className = `message ${message.role}`;
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  if (message.role === "user") {
    const text = article.appendChild(document.createElement("div"));
    text.className = "text";
    text.textContent = plain(message.content);
  } else {
    fill(article, message, { pending: !acts.length });
  }
  const tools = article.appendChild(document.createElement("div"));
  tools.className = "tools";
  tools.append(...acts.map(([label, icon, act]) => button(label, icon, act)));
  if (acts.length && message.role === "assistant") {
    const figures = tools.appendChild(document.createElement("span"));
    figures.className = "figures";
    figures.textContent = figuresOf(message);
  }
  return article;
}

/** Show what is new of an answer. What has not changed stays, and with it what is selected, focused or scrolled in it. */
export function fill(article, message, { pending }) {
  if (message.reasoning) reasoningOf(article, message).textContent = plain(message.reasoning);
  let prose = article.querySelector(".prose");
  if (!prose) {
    prose = document.createElement("div");
    prose.className = "prose";
    article.insertBefore(prose, article.querySelector(".tools"));
  }
  prose.classList.toggle("pending", pending && !message.content);
  const fresh = [...render(message.content).childNodes];
  const same = fresh.findIndex((node, number) => !prose.childNodes[number]?.isEqualNode(node));
  const kept = same < 0 ? fresh.length : same;
  while (prose.childNodes.length > kept) prose.lastChild.remove();
  prose.append(...fresh.slice(kept));
}

/** Replace all that a place holds; the focus stays at what has the same name in the same row, or goes where `orElse` says. */
export function redraw(place, elements, orElse) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const row = [...place.children].findIndex((one) => one.contains(focused));
  place.replaceChildren(...elements);
  if (!focused) return;
  const candidates = [...(place.children[row]?.querySelectorAll("button, summary, a") ?? [])];
  (candidates.find((one) => nameOf(one) === nameOf(focused)) ?? orElse).focus();
}

function nameOf(element) {
  return element.getAttribute("aria-label") ?? element.textContent;
}

function reasoningOf(article, message) {
  let details = article.querySelector(".reasoning");
  if (!details) {
    details = document.createElement("details");
    details.className = "reasoning";
    details.open = opened.has(message);
    details.appendChild(document.createElement("summary")).textContent = "Reasoning";
    details.append(document.createElement("div"));
    details.addEventListener("toggle", () => (details.open ? opened.add(message) : opened.delete(message)));
    article.prepend(details);
  }
  return details.lastElementChild;
}

function figuresOf(message) {
  const { tokens, rate, first } = message.figures ?? {};
  return [
    message.stopped ? "stopped" : message.cut ? "the length ran out" : "",
    tokens ? `${tokens} token${tokens === 1 ? "" : "s"}` : "",
    rate ? `${rate.toFixed(1)} tokens/s` : "",
    first ? `first after ${first.toFixed(2)} s` : "",
  ].filter(Boolean).join(" · ");
}
