/** The daemon's clock, which may differ from that of the browser. */

import { effect, signal } from "@preact/signals";

import { snapshot } from "./live";

let offsetSeconds = 0;

/** The current time at the daemon in Unix seconds. It advances every second while the page is visible. */
export const now = signal(Date.now() / 1000);

export function startClock(): void {
  let last: number | null = null;
  effect(() => {
    const time = snapshot.value?.time ?? null;
    if (time !== null && time !== last) offsetSeconds = time - Date.now() / 1000;
    last = time;
  });
  const tick = () => {
    if (!document.hidden) now.value = Date.now() / 1000 + offsetSeconds;
  };
  setInterval(tick, 1000);
  document.addEventListener("visibilitychange", tick);
}
