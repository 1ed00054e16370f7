import { conversations, create } from "../../chat/store";
import { href } from "../../router";

/** The conversations in this browser. */
export function Sidebar({ current, onChosen }: { current: string; onChosen: (id: string) => void }) {
  const startNew = () => {
    const empty = conversations.value.find((each) => each.messages.length === 0);
    onChosen((empty ?? create()).id);
    document.getElementById("composer")?.focus();
  };
  return (
    <nav class="sidebar" id="conversations" aria-label="Conversations">
      <button type="button" onClick={startNew}>
        New chat
      </button>
      <ul>
        {conversations.value.map(({ id, title }) => (
          <li key={id}>
            <a
              href={href("chat", id)}
              aria-current={id === current ? "true" : undefined}
              onClick={(event) => {
                event.preventDefault();
                onChosen(id);
              }}
            >
              {title}
            </a>
          </li>
        ))}
      </ul>
      <p class="muted small">Kept in this browser only.</p>
    </nav>
  );
}
