/** The body of a request for an answer. */

import type { Conversation, Message } from "./types";

/** Return the body. Reasoning of earlier answers is left out: models are not meant to see it again. */
export function requestBody({ model, system, sampling, messages }: Conversation): object {
  return {
    ...(model ? { model } : {}),
    messages: [...(system.trim() ? [{ role: "system", content: system }] : []), ...messages.map(wireMessage)],
    ...sampling,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function wireMessage({ role, text, images }: Message): object {
  if (!images?.length) return { role, content: text };
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: [...parts, ...(text ? [{ type: "text", text }] : [])] };
}
