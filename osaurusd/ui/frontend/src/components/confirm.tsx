import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

interface Question {
  title: string;
  text: string;
  action: string;
  resolve: (confirmed: boolean) => void;
}

const question = signal<Question | null>(null);

/** Ask whether to go ahead with `action`, such as "Remove". */
export function confirmAction(title: string, text: string, action: string): Promise<boolean> {
  return new Promise((resolve) => (question.value = { title, text, action, resolve }));
}

/** The dialog of `confirmAction`; part of the page once. */
export function Confirmation() {
  const dialog = useRef<HTMLDialogElement>(null);
  const current = question.value;
  useEffect(() => {
    if (current) dialog.current?.showModal();
  }, [current]);
  if (!current) return null;
  const answer = (confirmed: boolean) => {
    question.value = null;
    current.resolve(confirmed);
  };
  return (
    <dialog ref={dialog} aria-labelledby="confirm-title" onClose={() => answer(false)}>
      <div class="stack">
        <h2 id="confirm-title">{current.title}</h2>
        <p>{current.text}</p>
        <div class="row end">
          <button type="button" onClick={() => answer(false)}>
            Cancel
          </button>
          <button type="button" class="danger" onClick={() => answer(true)}>
            {current.action}
          </button>
        </div>
      </div>
    </dialog>
  );
}
