/** Which models can chat. */

import { snapshot } from "../live";
import type { Model } from "../wire";
import type { Conversation } from "./types";

export function chatModels(): Model[] {
  const models = snapshot.value?.models ?? [];
  return models.filter((model) => model.task === "generate" && model.state === "available" && model.chat);
}

/** Return the model of a conversation. Without a choice it is the default, one in memory, or the first. */
export function modelOf(conversation: Conversation): Model | undefined {
  const models = chatModels();
  const named = (name: string | null | undefined) =>
    models.find((model) => model.name === name || (name ? model.aliases.includes(name) : false));
  if (conversation.model) return named(conversation.model);
  const resident = snapshot.value?.workers.find((worker) => named(worker.model));
  return (
    named(snapshot.value?.default_model) ?? named(resident?.model) ?? models.find((each) => each.fits) ?? models[0]
  );
}
