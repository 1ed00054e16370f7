/** Which addresses in a model's answer become links. */

const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);

/** Return the address if it is absolute and its protocol is harmless, otherwise null. */
export function safeLink(address: string): string | null {
  try {
    const url = new URL(address);
    return PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
