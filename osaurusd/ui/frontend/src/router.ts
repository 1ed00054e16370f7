/** The view is in the fragment of the address, so that links and the back button work without the daemon's help. */

import { signal } from "@preact/signals";

/** The parts of the path: `["chat", ID]`. The overview is an empty list. */
export const path = signal<string[]>([]);

export function startRouter(): void {
  const read = () => {
    path.value = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decode);
  };
  addEventListener("hashchange", read);
  read();
}

export function navigate(...parts: string[]): void {
  location.hash = href(...parts);
}

export function href(...parts: string[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
