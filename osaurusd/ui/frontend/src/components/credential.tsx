import { useState } from "preact/hooks";

import { credential, manages, setCredential } from "../api";
import { sessionError, signedOut } from "../session";

/** Asks for the API key, or says how to get a session of the management page. */
export function CredentialPrompt() {
  if (signedOut.value) return <SessionOver text="You are signed out." />;
  if (manages && sessionError.value) return <SessionOver text={`This link is not valid: ${sessionError.value}.`} />;
  if (credential.value === "unknown") return null;
  return manages ? <SessionOver text="The session of this page is over." /> : <KeyForm />;
}

function SessionOver({ text }: { text: string }) {
  return (
    <div class="notice warning" role="alert">
      {text} Run <code>osaurusctl ui</code> in a terminal to open the page again.
    </div>
  );
}

function KeyForm() {
  const [key, setKey] = useState("");
  return (
    <form
      class="card stack"
      onSubmit={(event) => {
        event.preventDefault();
        if (key.trim()) setCredential(key.trim());
      }}
    >
      <h1>API key</h1>
      {credential.value === "rejected" ? (
        <p class="danger-text" role="alert">
          The daemon rejected this API key.
        </p>
      ) : (
        <p>This daemon requires an API key.</p>
      )}
      <div class="row">
        <label class="field grow">
          API key
          <input
            type="password"
            value={key}
            autocomplete="off"
            placeholder="sk-osaurus-…"
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <button type="submit" class="primary">
          Continue
        </button>
      </div>
      <p class="small muted">
        Create one with <code>osaurusctl key create</code>. It stays in this tab and is forgotten when you close it.
      </p>
    </form>
  );
}
