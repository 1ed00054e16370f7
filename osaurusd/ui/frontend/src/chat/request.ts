/** The body of a request for an answer. */

import type { Conversation, Message } from "./types";

/** Return the body. Reasoning of earlier answers is left out: models are not meant to see it again. */
export function requestBody({ model, system, sampling, messages }: Conversation): object {
  return {
    ...(model ? { model } : {}),
    messages: [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      ...messages.filter(isComplete).map(wireMessage),
    ],
    ...sampling,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** An answer that failed before its first word says nothing to the model. */
function isComplete({ role, text }: Message): boolean {
  return role === "user" || text !== "";
}

function wireMessage({ role, text, images }: Message): object {
  if (!images?.length) return { role, content: text };
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: [...parts, ...(text ? [{ type: "text", text }] : [])] };
}
