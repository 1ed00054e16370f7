/** Follows the daemon's event stream, and connects again when it ends. */

import { signal } from "@preact/signals";

import { ApiError, credentialChanged, request } from "./api";
import { applyEvent } from "./snapshot";
import { readEvents } from "./sse";
import type { Snapshot } from "./wire";

export type Connection = "connecting" | "live" | "reconnecting" | "unauthorized";

export const snapshot = signal<Snapshot | null>(null);
export const connection = signal<Connection>("connecting");

const SILENCE_MS = 30_000;
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 10_000;

/** Follow the stream for as long as the page is open. */
export async function followStream(): Promise<never> {
  let delay = FIRST_DELAY_MS;
  for (;;) {
    try {
      await readStream(() => (delay = FIRST_DELAY_MS));
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        connection.value = "unauthorized";
        await credentialChanged();
        continue;
      }
    }
    connection.value = snapshot.value ? "reconnecting" : "connecting";
    await wake(delay);
    delay = Math.min(delay * 2, MAX_DELAY_MS);
  }
}

async function readStream(onConnected: () => void): Promise<void> {
  const controller = new AbortController();
  let timer = setTimeout(() => controller.abort(), SILENCE_MS);
  const postpone = () => {
    clearTimeout(timer);
    timer = setTimeout(() => controller.abort(), SILENCE_MS);
  };
  try {
    const response = await request("/ui/stream", { signal: controller.signal });
    if (!response.body) return;
    for await (const event of readEvents(response.body, postpone)) {
      snapshot.value = applyEvent(snapshot.value, event);
      if (event.event === "snapshot") {
        connection.value = "live";
        onConnected();
      }
    }
  } finally {
    clearTimeout(timer);
    controller.abort();
  }
}

/** Wait, but not longer than until the page becomes visible or the network returns. */
function wake(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      document.removeEventListener("visibilitychange", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
    document.addEventListener("visibilitychange", done);
  });
}
