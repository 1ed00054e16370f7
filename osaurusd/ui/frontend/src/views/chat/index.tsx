import { useEffect, useState } from "preact/hooks";

import { announcement, conversations, create, find, opened } from "../../chat/store";
import { href, navigate, path } from "../../router";
import { ChatHeader } from "./chat_header";
import { Composer } from "./composer";
import { Messages } from "./messages";
import { Settings } from "./settings";
import { Sidebar } from "./sidebar";

export function ChatView() {
  const [settings, setSettings] = useState(false);
  const [sidebar, setSidebar] = useState(false);
  const id = path.value[1];
  const known = find(id) !== undefined;
  useEffect(() => {
    if (!opened.value || known) return;
    const latest = conversations.value[0] ?? create();
    // Without a new entry in the history, so that the back button leaves the chat.
    location.replace(href("chat", latest.id));
  }, [opened.value, known, id]);
  const conversation = find(id);
  if (!conversation) return null;
  return (
    <div class={sidebar ? "chat with-sidebar" : "chat"}>
      <Sidebar
        current={conversation.id}
        onChosen={(chosen) => {
          setSidebar(false);
          navigate("chat", chosen);
        }}
      />
      <section class="conversation" aria-label="Conversation">
        <ChatHeader
          conversation={conversation}
          settings={settings}
          onSettings={() => setSettings(!settings)}
          sidebar={sidebar}
          onSidebar={() => setSidebar(!sidebar)}
        />
        {settings && <Settings key={conversation.id} conversation={conversation} />}
        <Messages conversation={conversation} />
        <Composer key={conversation.id} conversation={conversation} />
      </section>
      <div class="offscreen" role="status">
        {announcement.value}
      </div>
    </div>
  );
}
