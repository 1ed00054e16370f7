import { render } from "preact";

import { App } from "./app";
import { manages } from "./api";
import { openConversations } from "./chat/store";
import { startClock } from "./clock";
import { followStream } from "./live";
import { startRouter } from "./router";
import { startSession } from "./session";
import { applyTheme } from "./theme";

async function start(): Promise<void> {
  applyTheme();
  // The token in the address must be gone before the router reads it.
  const session = manages ? startSession() : Promise.resolve();
  startRouter();
  startClock();
  const root = document.getElementById("app");
  root?.replaceChildren();
  if (root) render(<App />, root);
  void openConversations();
  await session;
  await followStream();
}

void start();
