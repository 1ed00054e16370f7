/** The session of the management page: `osaurusctl ui` opens the page with a one-time token in the fragment. */

import { signal } from "@preact/signals";

import { clearCredential, errorText, getJson, postJson, setCredential } from "./api";

/** Why the token was not accepted. */
export const sessionError = signal<string | null>(null);
export const signedOut = signal(false);

const TOKEN = /^#token=(.+)$/;

/** Exchange the token in the address, if there is one, and remove it from the address and the history first. */
export async function startSession(): Promise<void> {
  const token = TOKEN.exec(location.hash)?.[1];
  if (!token) {
    // Asks for a credential if the stored session is over.
    await getJson("/manage/session").catch(() => undefined);
    return;
  }
  history.replaceState(null, "", location.pathname);
  try {
    const { session } = await postJson<{ session: string }>("/manage/session", { token: decodeURIComponent(token) });
    setCredential(session);
  } catch (error) {
    sessionError.value = errorText(error);
  }
}

export async function endSession(): Promise<void> {
  await postJson("/manage/session/end").catch(() => undefined);
  clearCredential();
  signedOut.value = true;
}
