// Conversations, stored in this browser.

import { withoutOldImages } from "./images.js";

const STORAGE_KEY = "conversations/1";

/** Return a stored value, or null if there is none or it cannot be read. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`llmctl.${name}`));
  } catch {
    return null;
  }
}

/** Store a value. Return false if the browser has no space for it or forbids storage. */
export function remember(name, value, replacer = null) {
  try {
    localStorage.setItem(`llmctl.${name}`, JSON.stringify(value, replacer));
    return true;
  } catch {
    return false;
  }
}

/**
 * Return all conversations, newest first: {id, title, isNamed, system, messages}. A message of the user has {role, content,
 * attachments: [{name, text, bytes} or {name, image, bytes}]}; one of the model {role, content, reasoning, stopped, cut, seeds, figures, before, after}.
 */
export function allConversations() {
  const stored = recall(STORAGE_KEY);
  return Array.isArray(stored) ? stored.filter((one) => one && Array.isArray(one.messages)) : [];
}

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", system: "", messages: [] };
}

/**
 * Store a conversation. Return false if the browser has no space for it. Log-probabilities are too large to be kept, and
 * so are the oldest images: `dropped` is called if some are not kept from now on.
 */
export function saveConversation(conversation, dropped = () => {}) {
  if (!conversation.isNamed) conversation.title = titleFrom(conversation.messages);
  const { stored, dropped: images } = withoutOldImages([conversation, ...allConversations().filter((one) => one.id !== conversation.id)]);
  if (images.some((image) => !known.has(image))) dropped();
  images.forEach((image) => known.add(image));
  return store(stored);
}

const known = new WeakSet(); // images of open conversations that are not stored

function store(conversations) {
  return remember(STORAGE_KEY, conversations, (key, value) => (key === "logprobs" ? undefined : value));
}

function titleFrom(messages) {
  const first = messages.find((message) => message.role === "user");
  return (first?.content || first?.attachments?.[0]?.name || "").trim().split("\n")[0].slice(0, 80);
}

/** Give a conversation a title that later messages do not change. */
export function renameConversation(id, title) {
  return store(allConversations().map((one) => (one.id === id ? { ...one, title, isNamed: true } : one)));
}

export function deleteConversation(id) {
  store(allConversations().filter((one) => one.id !== id));
}
