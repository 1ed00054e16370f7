import { useEffect, useRef } from "preact/hooks";

import { manages } from "./api";
import { Confirmation } from "./components/confirm";
import { CredentialPrompt } from "./components/credential";
import icon from "./icon.svg";
import { connection, type Connection } from "./live";
import { href, path } from "./router";
import { endSession, signedOut } from "./session";
import { nextTheme, theme } from "./theme";
import { ChatView } from "./views/chat/index";
import { ModelsView } from "./views/models";
import { OverviewView } from "./views/overview";
import { RequestsView } from "./views/requests";
import { SystemView } from "./views/system/index";

const VIEWS = [
  { part: undefined, title: "Overview", View: OverviewView },
  { part: "chat", title: "Chat", View: ChatView },
  { part: "models", title: "Models", View: ModelsView },
  { part: "requests", title: "Requests", View: RequestsView },
  ...(manages ? [{ part: "system", title: "System", View: SystemView }] : []),
];

const CONNECTION_TEXTS: Record<Connection, string> = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  unauthorized: "Locked",
};

export function App() {
  const part = path.value[0];
  const view = VIEWS.find((each) => each.part === part) ?? VIEWS[0];
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    document.title = view?.part ? `${view.title} – osaurusd` : "osaurusd";
    // A screen reader continues with the new view.
    if (!first.current) main.current?.focus();
    first.current = false;
  }, [view]);
  if (!view) return null;
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.focus();
        }}
      >
        Skip to content
      </a>
      <Header current={view.part} />
      <main id="main" ref={main} tabIndex={-1} class={view.part === "chat" ? "chat-page" : "page"}>
        <CredentialPrompt />
        {!signedOut.value && <view.View />}
      </main>
      <Confirmation />
    </>
  );
}

function Header({ current }: { current: string | undefined }) {
  return (
    <header class="header">
      <a class="brand" href={href()}>
        <img src={icon} alt="" />
        osaurusd
      </a>
      <nav class="tabs" aria-label="Views">
        {VIEWS.map(({ part, title }) => (
          <a
            key={title}
            href={part ? href(part) : href()}
            aria-current={part === current ? "page" : undefined}
            ref={(link) => {
              // On a narrow screen, the tabs scroll.
              if (part === current) link?.scrollIntoView({ block: "nearest", inline: "nearest" });
            }}
          >
            {title}
          </a>
        ))}
      </nav>
      <div class="side">
        <span class={`connection ${connection.value}`} role="status">
          {CONNECTION_TEXTS[connection.value]}
        </span>
        <button type="button" class="quiet compact" onClick={nextTheme} aria-label={`Theme: ${theme.value}`}>
          {{ system: "Auto", light: "Light", dark: "Dark" }[theme.value]}
        </button>
        {manages && !signedOut.value && (
          <button type="button" class="quiet compact" onClick={() => void endSession()}>
            Sign out
          </button>
        )}
      </div>
    </header>
  );
}
