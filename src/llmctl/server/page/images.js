// Images attached to a message. They are scaled down here, sent as data URLs, and stored within a limit.

import { sizeText } from "./browser.js";
import { element } from "./elements.js";
import { plain } from "./markdown.js";

const MAX_SIDE = 2048; // more than most models see of an image
const MAX_FILE_BYTES = 50_000_000; // of the server, too
const MAX_PNG_BYTES = 1_000_000; // larger ones are sent as JPEG
const MAX_STORED_CHARACTERS = 3_000_000; // browsers store about five million for a site, and the texts need room, too
export const NOT_KEPT = `This browser keeps ${sizeText(MAX_STORED_CHARACTERS)} of images. The oldest are no longer kept.`;

/** Return true for a file that is meant as an image. A drawing as SVG is a text. */
export function isImageFile({ name, type }) {
  if (!type) return /\.(png|jpe?g|webp|gif|bmp|avif|tiff?|heic)$/i.test(name);
  return type.startsWith("image/") && type !== "image/svg+xml";
}

/** Return {name, image, bytes} of an image file; `image` is a data URL. Throw an Error if the browser cannot read it. */
export async function readImage(file, name) {
  if (file.size > MAX_FILE_BYTES) throw new Error(`${name} has ${sizeText(file.size)}; an image may have ${sizeText(MAX_FILE_BYTES)}.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is not an image that this browser can read. Save it as JPEG or PNG.`);
  }
  const blob = await encode(bitmap, file.type === "image/jpeg");
  bitmap.close();
  if (!blob) throw new Error(`${name} is too large for this browser.`);
  return { name, image: await dataUrl(blob), bytes: blob.size };
}

/** Return an image as a PNG, or as a JPEG if it was one or would be large. Metadata, such as places, is not kept. */
async function encode(bitmap, isJpeg) {
  const canvas = document.createElement("canvas");
  const factor = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  if (!context) return null;
  context.fillStyle = "white"; // the server, too, makes transparent parts white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blobOf = (type) => new Promise((resolve) => { canvas.toBlob(resolve, type, 0.9); });
  const png = isJpeg ? null : await blobOf("image/png");
  return png && png.size <= MAX_PNG_BYTES ? png : blobOf("image/jpeg");
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

/** Return true for an attachment that is an image, or was one that is no longer kept. */
export function isImage(attachment) {
  return attachment.image !== undefined;
}

/** Return the part of a request for an image. */
export function imagePart({ name, image }) {
  if (!image) return { type: "text", text: `(The image ${name} is no longer available.)` };
  return { type: "image_url", image_url: { url: image } };
}

/** Return the element of an image: the picture with its name as alternative text, or the reason why there is none. */
export function imageElement({ name, image }) {
  if (!image) return element("p", { className: "attachment hint", text: `${plain(name)}: no longer kept. ${NOT_KEPT}` });
  return element("img", { className: "picture", attributes: { src: image, alt: plain(name) } });
}

/**
 * Return conversations for storage, in which the oldest images are null if all together are over the limit, and those
 * images. The conversations are given newest first.
 */
export function withoutOldImages(conversations) {
  let characters = 0;
  const dropped = [];
  const kept = (attachment) => {
    if (!attachment.image) return attachment;
    characters += attachment.image.length;
    if (characters <= MAX_STORED_CHARACTERS) return attachment;
    dropped.push(attachment);
    return { ...attachment, image: null };
  };
  const stored = conversations.map((conversation) => ({
    ...conversation,
    messages: conversation.messages.toReversed().map((message) =>
      message.attachments ? { ...message, attachments: message.attachments.map(kept) } : message).toReversed(),
  }));
  return { stored, dropped };
}
