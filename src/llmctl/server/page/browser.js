// What the browser does for the page: announcements, the clipboard and downloads.

export const byId = (id) => document.getElementById(id);

/** Tell screen readers something. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Copy a text. Return false if the browser does not allow it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // browsers deny clipboard access to pages loaded over plain HTTP from another machine
    return copyFromField(text);
  }
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

/** Offer a text as a file. Only letters, digits, spaces, _ and - of the title become part of its name. */
export function download(text, { type, title, extension }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 40) || "conversation"}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Return a size in words: 3 KB. */
export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1_000_000 ? `${Math.round(bytes / 1000)} KB` : `${(bytes / 1_000_000).toFixed(1)} MB`;
}
