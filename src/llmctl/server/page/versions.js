// Versions of an answer. A message has the fields of the version that is shown; `before` and `after` hold the others.
// Later messages belong to the version that they followed: they are kept with it, in `tail`, while another is shown.

const SHARED = ["role", "before", "after"];

function fields(message) {
  return Object.fromEntries(Object.entries(message).filter(([name]) => !SHARED.includes(name)));
}

/** Return {number, count} of the version that is shown. */
export function position(message) {
  const before = message.before?.length ?? 0;
  return { number: before + 1, count: before + 1 + (message.after?.length ?? 0) };
}

/** Return a new, empty version of an answer, next to the one that is shown. All others are kept. */
export function newVersion(message) {
  const { role, before = [], after = [] } = message;
  return { role, content: "", reasoning: "", before: [...before, fields(message)], after };
}

/** Return the answer without the version that is shown: the one before it is shown instead; null if there is none. */
export function withoutShown(message) {
  if (!message.before?.length) return null;
  return { role: message.role, ...message.before.at(-1), before: message.before.slice(0, -1), after: message.after ?? [] };
}

/** Return the messages with the previous (step -1) or next (step 1) version of the answer at an index. */
export function switched(messages, index, step) {
  const { role, before = [], after = [] } = messages[index];
  const to = step < 0 ? before.at(-1) : after[0];
  if (!to) return messages;
  const shown = { ...fields(messages[index]), tail: messages.slice(index + 1) };
  const { tail = [], ...restored } = to;
  const others = step < 0
    ? { before: before.slice(0, -1), after: [shown, ...after] }
    : { before: [...before, shown], after: after.slice(1) };
  return [...messages.slice(0, index), { role, ...restored, ...others }, ...tail];
}
