/** The management API, which only the page of `osaurusctl ui` reaches. */

import { signal } from "@preact/signals";

import { ApiError, errorText, getJson, post, postJson, readLines } from "./api";
import { bytes } from "./format";
import { confirmAction } from "./components/confirm";

export interface Pull {
  id: string;
  repo: string;
  name: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  stage: "resolving" | "downloading" | "verifying" | "placing" | null;
  done: number;
  total: number;
  hashed: number;
  to_hash: number;
  bytes_per_second: number;
  seconds_left: number | null;
  note: string | null;
  error: { message: string } | null;
}

export interface FoundModel {
  repo: string;
  name: string;
  bytes: number | null;
  parameters: number | null;
  downloads: number | null;
  fits: boolean | null;
  gated: boolean;
  state: string;
}

export interface Recommended {
  repo: string;
  task: string;
  description: string;
  bytes: number;
  fits: boolean | null;
  best: boolean;
}

/** The last result of an action, for the screen and for screen readers. */
export const outcome = signal<{ text: string; failed: boolean } | null>(null);

/** Models whose action is in progress, with what happens to them. */
export const inProgress = signal<ReadonlyMap<string, string>>(new Map());

export const pulls = signal<Pull[]>([]);

/** Run an action, and show what it led to. Returns why it was refused because the model is in use, otherwise null. */
async function act(model: string, doing: string, done: string, action: () => Promise<unknown>): Promise<string | null> {
  inProgress.value = new Map(inProgress.value).set(model, doing);
  outcome.value = null;
  try {
    await action();
    outcome.value = { text: done, failed: false };
    return null;
  } catch (error) {
    outcome.value = { text: errorText(error), failed: true };
    return error instanceof ApiError && error.code === "busy" ? error.message : null;
  } finally {
    const rest = new Map(inProgress.value);
    rest.delete(model);
    inProgress.value = rest;
  }
}

export async function load(model: string): Promise<void> {
  await act(model, "loading", `${model} is loaded.`, () => postJson("/v0/load", { model }));
}

/** Unload a model. If it is in use, say why it was refused, and offer to stop its requests. */
export async function unload(model: string): Promise<void> {
  const send = (force: boolean) =>
    act(model, "unloading", `${model} is unloaded.`, () => postJson("/v0/unload", { model, force }));
  const refusal = await send(false);
  if (refusal === null) return;
  const text = `Refused: ${refusal}. Requests that run would fail.`;
  if (await confirmAction(`Unload ${model} anyway?`, text, "Unload anyway")) await send(true);
}

export async function pin(model: string, pinned: boolean): Promise<void> {
  const done = pinned ? `${model} is pinned: it stays in memory.` : `${model} is no longer pinned.`;
  await act(model, pinned ? "pinning" : "removing the pin", done, () => postJson("/v0/pins", { model, pinned }));
}

/** Remove a model from disk, after a question that says how much space that frees. */
export async function remove(model: string): Promise<void> {
  let freed: number | null = null;
  await act(model, "checking", "", async () => {
    const { removed } = await postJson<{ removed: { bytes: number }[] }>("/manage/remove/preview", { model });
    freed = removed.reduce((sum, each) => sum + each.bytes, 0);
  });
  if (freed === null) return;
  const text = `This deletes its files and frees ${bytes(freed)}. You would have to download or import it again.`;
  if (!(await confirmAction(`Remove ${model}?`, text, "Remove"))) return;
  const send = (force: boolean) =>
    act(model, "removing", `${model} is removed.`, () => postJson("/manage/remove", { model, confirm: model, force }));
  const refusal = await send(false);
  if (refusal === null) return;
  if (await confirmAction(`Remove ${model} anyway?`, `Refused: ${refusal}.`, "Remove anyway")) await send(true);
}

export async function startPull(model: string): Promise<void> {
  outcome.value = null;
  try {
    const pull = await postJson<Pull>("/v0/pulls", { model });
    updatePull(pull);
    void watch([pull.id]);
  } catch (error) {
    outcome.value = { text: errorText(error), failed: true };
  }
}

export async function cancelPull(id: string): Promise<void> {
  await postJson("/v0/pulls/cancel", { pull: id }).catch((error: unknown) => {
    outcome.value = { text: errorText(error), failed: true };
  });
}

/** Show the pulls that the daemon knows, and follow the unfinished ones. */
export async function openPulls(): Promise<void> {
  pulls.value = await getJson<Pull[]>("/v0/pulls").catch(() => pulls.value);
  const unfinished = pulls.value.filter(isUnfinished).map((pull) => pull.id);
  if (unfinished.length) await watch(unfinished);
}

export function isUnfinished(pull: Pull): boolean {
  return pull.state === "queued" || pull.state === "running";
}

async function watch(ids: string[]): Promise<void> {
  try {
    const response = await post("/v0/pulls/watch", { pulls: ids });
    for await (const { pull } of readLines<{ pull: Pull }>(response)) updatePull(pull);
  } catch {
    // The connection is gone. `openPulls` continues when the daemon is back.
  }
}

function updatePull(pull: Pull): void {
  const others = pulls.value.filter((each) => each.id !== pull.id);
  pulls.value = [pull, ...others];
}
