// Elements: their creation, icon buttons, and replacement without loss of the focus.

const ICONS = {
  copy: "M9 9h10v10H9zM5 15V5h10",
  retry: "M5 12a7 7 0 1 1 2 5M5 20v-4h4",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  resume: "M8 5l10 7-10 7z",
  details: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 11v5M12 8v.01",
  previous: "M14 6l-6 6 6 6",
  next: "M10 6l6 6-6 6",
  close: "M7 7l10 10M17 7L7 17",
  remove: "M6 7h12M10 7V5h4v2M8 7l1 12h6l1-12",
};

/** Return an element with a class, a text and children. */
export function element(name, { className = "", text = null, attributes = {} } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Return an icon button with an accessible name. */
export function button(label, icon, action) {
  const made = element("button", { attributes: { type: "button", "aria-label": label, title: label } });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(svg.namespaceURI, "path")).setAttribute("d", ICONS[icon]);
  made.append(svg);
  made.addEventListener("click", action);
  return made;
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
