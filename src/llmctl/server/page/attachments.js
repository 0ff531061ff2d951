// Files attached to a message: images, and text files, which are sent as text in the message, each in a fence that it
// cannot close.

import { announce, byId, sizeText } from "./browser.js";
import { button, element, replaceChildren } from "./elements.js";
import { imageElement, imagePart, isImage, isImageFile, readImage } from "./images.js";
import { plain } from "./markdown.js";

export const MAX_FILE_BYTES = 256_000;
export const MAX_TOTAL_BYTES = 1_000_000;
export const MAX_FILES = 10;

/** Return {name, text, bytes} of a file, or {name, image, bytes} of an image. Throw an Error that says what is wrong. */
export async function readAttachment(file, takesImages) {
  const name = plain(file.name).replace(/[\s`]+/g, " ").trim().slice(0, 120) || "file";
  if (isImageFile(file)) {
    if (!takesImages) throw new Error(`${name} is an image, and this model takes none.`);
    return readImage(file, name);
  }
  if (file.size > MAX_FILE_BYTES) throw new Error(`${name} has ${sizeText(file.size)}; a file may have ${sizeText(MAX_FILE_BYTES)}.`);
  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()).replace(/\r\n?/g, "\n");
  } catch {
    throw new Error(`${name} is not a text file in UTF-8, or cannot be read.`);
  }
  if (text.includes("\u0000")) throw new Error(`${name} is not a text file.`);
  if (!text.trim()) throw new Error(`${name} is empty.`);
  return { name, text, bytes: file.size };
}

/** Return what is wrong with so many attachments, or null. */
export function limitProblem(attachments) {
  if (attachments.length > MAX_FILES) return `A message may have ${MAX_FILES} files.`;
  const total = attachments.reduce((sum, one) => sum + (isImage(one) ? 0 : one.bytes), 0);
  return total > MAX_TOTAL_BYTES ? `The text files of a message may have ${sizeText(MAX_TOTAL_BYTES)} together.` : null;
}

/** Return the text of a message: what was written, then the attached text files and the names of images. */
export function messageText({ content, attachments = [] }) {
  const texts = attachments.map((one) => (isImage(one) ? `Image: ${one.name}` : fenced(one)));
  return [content, ...texts].filter(Boolean).join("\n\n");
}

/** Return the content of a message for a request: a text, or its images and its text. */
export function messageContent({ content, attachments = [] }) {
  const images = attachments.filter(isImage);
  const text = messageText({ content, attachments: attachments.filter((one) => !isImage(one)) });
  if (!images.length) return text;
  return [...images.map(imagePart), ...(text ? [{ type: "text", text }] : [])];
}

function fenced({ name, text }) {
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `File: ${name}\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

/** Return the elements of a sent message's attachments: images side by side, then files, whose text is shown on request. */
export function attachmentElements(attachments) {
  const images = attachments.filter(isImage).map(imageElement);
  const files = attachments.filter((attachment) => !isImage(attachment)).map(({ name, text, bytes }) => {
    const details = element("details", { className: "attachment" });
    details.append(element("summary", {}, plain(name), element("span", { className: "hint", text: ` ${sizeText(bytes)}` })));
    details.addEventListener("toggle", () => { // a large file becomes an element only when it is shown
      if (details.open && !details.querySelector("pre")) {
        details.append(element("pre", { text: plain(text), attributes: { tabindex: "0", "aria-label": plain(name) } }));
      }
    });
    return details;
  });
  return images.length ? [element("div", { className: "pictures" }, ...images), ...files] : files;
}

/**
 * Connect the button, dropping and pasting of files. Return the attachments of the message that is being written:
 * {files, set(files), allowImages(takesImages)}.
 * @param {object} handlers `changed()` follows every change, `failed(error)` gets what could not be attached.
 */
export function setUpAttachments({ changed, failed }) {
  let takesImages = true; // until the server says
  const draft = {
    files: [],
    allowImages(allowed) {
      takesImages = allowed;
      const label = allowed ? "Attach images or text files" : "Attach text files (this model takes no images)";
      byId("attach").setAttribute("aria-label", label);
      byId("attach").title = label;
    },
    set(files) {
      draft.files = files;
      replaceChildren(byId("attached"), files.map((file) => draftElement(file)), byId("attach"));
      byId("attached").hidden = !files.length;
      changed();
    },
  };
  const draftElement = (file) => {
    const name = element("span", { text: file.name });
    const size = element("span", { className: "hint", text: sizeText(file.bytes) });
    const remove = button(`Remove: ${file.name}`, "close", () => {
      draft.set(draft.files.filter((one) => one !== file));
      announce(`Removed: ${file.name}`);
    });
    const thumbnail = file.image ? [element("img", { attributes: { src: file.image, alt: file.name } })] : [];
    return element("li", {}, ...thumbnail, name, size, remove);
  };
  const add = async (files) => {
    const problems = [];
    let all = draft.files;
    for (const file of files) {
      try {
        const next = [...all, await readAttachment(file, takesImages)];
        const problem = limitProblem(next);
        if (problem) throw new Error(problem);
        all = next;
      } catch (error) {
        problems.push(error.message);
      }
    }
    if (all !== draft.files) announce(`Attached: ${all.slice(draft.files.length).map(({ name }) => name).join(", ")}`);
    draft.set(all);
    if (problems.length) failed(new Error([...new Set(problems)].join(" ")));
  };
  listen(add);
  return draft;
}

function listen(add) {
  byId("attach").addEventListener("click", () => byId("attach-files").click());
  byId("attach-files").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    await add(files);
    byId("prompt").focus();
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  for (const kind of ["dragenter", "dragover"]) {
    byId("app").addEventListener(kind, (event) => { if (hasFiles(event)) event.preventDefault(); });
  }
  byId("app").addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
  byId("prompt").addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || event.clipboardData.types.includes("text/plain")) return; // a copied table has a picture, too
    event.preventDefault();
    add(files);
  });
}
